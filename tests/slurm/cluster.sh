#!/usr/bin/env bash
# A SLURM of three nodes with three pretended GPUs each on this machine's loopback, for tests. Needs root.
#
#   cluster.sh install            slurmctld, slurmd, the clients and munge, where they are missing
#   cluster.sh start DIR          everything of it lives in DIR; clients: export SLURM_CONF=DIR/slurm.conf
#   cluster.sh start-node DIR N   node N again, after it was killed
#   cluster.sh stop DIR
#   cluster.sh with COMMAND...    install, start, COMMAND with SLURM_CONF set, stop; ends with COMMAND's exit code
set -euo pipefail
PACKAGES=(slurmctld slurmd slurm-client munge)
PROGRAMS=(slurmctld slurmd sbatch munged)
CONTROL_PORT=16817
NODE_PORTS=1700 # and the node's number
export PATH=$PATH:/usr/sbin:/sbin

fail() {
  echo "cluster.sh: $*" >&2
  exit 1
}

install() {
  [ "$(id -u)" -eq 0 ] || fail "root is needed to install and start SLURM's daemons"
  unshare --mount true 2>/dev/null || fail "no mount namespaces here (unshare --mount is refused)"
  if ! command -v "${PROGRAMS[@]}" >/dev/null; then
    command -v apt-get >/dev/null || fail "SLURM is not installed, and there is no apt-get to install it with"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -q -y --no-install-recommends "${PACKAGES[@]}"; } >/tmp/slurm-install.log 2>&1 ||
      fail "apt-get could not install ${PACKAGES[*]}: $(grep -m1 '^E:' /tmp/slurm-install.log || true)"
  fi
}

write_config() {
  local dir=$1 n other
  mkdir -p "$dir"/state "$dir"/fakegpu "$dir"/spool-node{1,2,3}
  for n in 0 1 2; do ln -sfn /dev/null "$dir/fakegpu/gpu$n"; done
  # The nodes' names, as a cluster's DNS would know them, and this machine's name as each node's own address.
  for n in 1 2 3; do
    {
      echo "127.0.0.1 localhost"
      echo "127.0.0.$n $(hostname) $(hostname -s)"
      for other in 1 2 3; do echo "127.0.0.$other node$other"; done
    } >"$dir/hosts-node$n"
  done
  cat >"$dir/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$CONTROL_PORT
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
JobRequeue=1
KillWait=10
MinJobAge=1200
SlurmdTimeout=15
TCPTimeout=10
SlurmdParameters=config_overrides
GresTypes=gpu
CONF
  for n in 1 2 3; do
    echo "NodeName=node$n NodeHostname=$(hostname -s) NodeAddr=127.0.0.$n Port=$NODE_PORTS$n CPUs=24 RealMemory=4000 Gres=gpu:rtx4090:3"
  done >>"$dir/slurm.conf"
  echo "PartitionName=debug Nodes=node[1-3] Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP" >>"$dir/slurm.conf"
  echo "NodeName=node[1-3] Name=gpu Type=rtx4090 File=$dir/fakegpu/gpu[0-2]" >"$dir/gres.conf"
}

# In a mount namespace with a hosts file of its own: the machine's stays as it is.
start_node() {
  unshare --mount bash -c 'mount --bind "$1/hosts-node$2" /etc/hosts && exec slurmd -f "$1/slurm.conf" -N "node$2"' - "$1" "$2"
}

start() {
  local dir n
  mkdir -p "$1"
  dir=$(cd "$1" && pwd)
  export SLURM_CONF=$dir/slurm.conf
  write_config "$dir"
  chmod 755 "$dir"
  [ -e "$dir/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
  munged --force --num-threads=2 --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
  slurmctld -f "$SLURM_CONF"
  for n in 1 2 3; do start_node "$dir" "$n"; done
  for _ in {1..60}; do
    [ "$(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | wc -l)" -eq 3 ] && return
    sleep 1
  done
  sinfo >&2 || true
  tail -n 5 "$dir"/*.log >&2
  fail "three idle nodes were not there after a minute"
}

# The daemons, and what they left running: steps and jobs inherit SLURM_CONF from their slurmd.
stop() {
  local dir pid
  dir=$(cd "$1" && pwd)
  export SLURM_CONF=$dir/slurm.conf
  timeout 20 scancel --user="$(id -un)" 2>/dev/null || true
  for _ in {1..20}; do
    [ -n "$(timeout 5 squeue --noheader 2>/dev/null)" ] || break
    sleep 1
  done
  for pid in "$dir"/slurmd-*.pid "$dir"/slurmctld.pid "$dir"/munged.pid; do
    [ ! -f "$pid" ] || kill "$(cat "$pid")" 2>/dev/null || true
  done
  sleep 2
  for pid in $(pgrep -x slurmstepd || true; pgrep -x slurmd || true; pgrep -x slurmctld || true); do
    ! tr "\0" "\n" 2>/dev/null <"/proc/$pid/environ" | grep -qx "SLURM_CONF=$SLURM_CONF" || kill -KILL "$pid" || true
  done
}

with() {
  local dir code=0
  install
  dir=$(mktemp -d /tmp/slurm-test.XXXXXX)
  trap 'stop "$dir"; rm -rf "$dir"' EXIT
  start "$dir"
  SLURM_CONF=$dir/slurm.conf SLURM_TEST_CLUSTER=$dir "${@}" || code=$?
  exit "$code"
}

case "${1:-}" in
  install) install ;;
  start) start "$2" ;;
  start-node) start_node "$(cd "$2" && pwd)" "$3" ;;
  stop) stop "$2" ;;
  with) shift && with "$@" ;;
  *) fail "install | start DIR | start-node DIR N | stop DIR | with COMMAND..." ;;
esac
