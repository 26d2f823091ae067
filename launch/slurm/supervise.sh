# What every job script shares; sourced by train.sbatch and train_multinode.sbatch. Needs bash and coreutils.
#
# Exit codes of launch/train.py: 0 finished, 1 failed, 2 wrong input, 75 stopped in good order with a checkpoint.
#
#   ANYTEXT2_BIN            folder of python and deepspeed                      default .venv/bin
#   ANYTEXT2_DEEPSPEED      the DeepSpeed configuration                         default ds_configs/zero2.json
#   ANYTEXT2_MAX_REQUEUES   how often a stopped run is queued again; 0: never   default 20
#   ANYTEXT2_EVERY          start a job like this again so long after this one's start, as in 24hours
#   ANYTEXT2_TIDY           seconds that a finished run's processes get to go   default 15
#   MASTER_PORT             where the ranks meet                                default from the job's id

PREEMPTED=75
bin=${ANYTEXT2_BIN:-.venv/bin}
ds_config=${ANYTEXT2_DEEPSPEED:-ds_configs/zero2.json}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}

say() { echo "job ${SLURM_JOB_ID:-?}: $*"; }

# Queues the job that follows this one in a schedule; not again when this very job starts once more after a requeue.
# $1: this script. The rest: its arguments.
schedule_next() {
  [ -n "${ANYTEXT2_EVERY:-}" ] && [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || return 0
  local next
  if next=$(sbatch --parsable --begin="now+$ANYTEXT2_EVERY" --job-name="$SLURM_JOB_NAME" "$@"); then
    say "next start in $ANYTEXT2_EVERY: job $next"
  else
    say "the next job of the schedule could not be queued; submit it again by hand" >&2
  fi
}

# Runs a command to its end and leaves its exit code in $code. USR1 (SLURM's warning before the time limit) and TERM go
# on to the command's whole process group as USR1: the ranks stop at their next step, the launchers between here and
# there must ignore it (env --ignore-signal=USR1), or they would end first and leave the ranks alone.
supervise() {
  local status
  stop_asked=""
  warned=""
  set -m # a process group of its own
  "$@" &
  child=$!
  trap 'warned=USR1; forward' USR1
  trap 'warned=TERM; forward' TERM
  code=0
  while :; do
    interrupted=""
    wait "$child"
    status=$?
    # 127: the last wait had already brought the code, and a signal came just then
    [ "$status" -eq 127 ] && [ -n "$stop_asked" ] || code=$status
    [ -n "$interrupted" ] || break
  done
  trap - USR1 TERM
  set +m
  left_behind
}

# A launcher that was killed leaves its ranks behind, and the deepspeed runner then even says 0.
left_behind() {
  local second tidy=${ANYTEXT2_TIDY:-15}
  for ((second = 0; second < tidy + 30; second++)); do
    kill -0 -- "-$child" 2>/dev/null || return 0
    if [ "$second" -eq "$tidy" ]; then
      say "the launcher ended with exit code $code before its ranks; they are given 30 seconds" >&2
      [ "$code" -ne 0 ] || code=1
      kill -USR1 -- "-$child" 2>/dev/null
    fi
    sleep 1
  done
  kill -KILL -- "-$child" 2>/dev/null
}

# A second signal makes a rank exit at once, without its checkpoint: only the first one goes on.
forward() {
  interrupted=yes
  [ -z "$stop_asked" ] || return 0
  stop_asked=$warned
  say "$warned: asking the run to stop with a checkpoint"
  kill -USR1 -- "-$child" 2>/dev/null
}

# Ends the job with $code. A run that stopped in good order is queued again, unless somebody ended it on purpose.
finish() {
  local limit=${ANYTEXT2_MAX_REQUEUES:-20} restarts=${SLURM_RESTART_COUNT:-0}
  if [ "$code" -ne "$PREEMPTED" ]; then
    say "the run ended with exit code $code"
  elif [ "$stop_asked" = TERM ]; then
    say "stopped in good order by TERM; not queued again by this script"
  elif [ "$restarts" -ge "$limit" ]; then
    say "stopped in good order; not queued again: $restarts restarts, ANYTEXT2_MAX_REQUEUES=$limit"
  else
    # Said before it is done: the requeue ends this very script, at times before the next line runs.
    say "stopped in good order; queueing it again (restart $((restarts + 1)) of at most $limit)"
    scontrol requeue "$SLURM_JOB_ID" || say "scontrol requeue refused; submit it again by hand" >&2
  fi
  exit "$code"
}

# One port for all ranks of this job, another one for the next job, and outside of what Linux hands out by itself.
job_port() { echo "${MASTER_PORT:-$((20000 + (7 * SLURM_JOB_ID) % 12000))}"; }
