"""Trains: `deepspeed launch/train.py --deepspeed ds_configs/zero2.json [--config RECIPE.yaml] [key=value ...]`.

Without --config the embedded default runs: the tiny AnyText2 on a synthetic dataset. Exit code 0: finished; 1: failed;
2: the command, a file or a value is wrong (one line says which); 75: stopped in good order, by a signal or a limit, and
the same command goes on from there.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence

from distill.runtime import signals
from launch.common.cli import is_command
from launch.common.parsers import parse_train as parse

if is_command(__name__):  # before the imports below, which take seconds
    parse(None)
    signals.install_signal_handlers()

import torch

from distill.config.ds_config import choose_config, read_ds_config
from distill.config.schema import Recipe
from distill.data.loader import UnreadableError
from distill.planning.plan import memory_warning
from distill.runtime.host_memory import GIB
from distill.runtime.processes import identify
from distill.runtime.rendezvous import is_main_process
from distill.runtime.watchdog import ON_FAILURE_SECONDS, PEER_EXIT_SECONDS, Peer, Watchdog
from distill.runtime.world import World, all_gather_object, is_communication_error, shutdown
from distill.tracking.notify import Event
from distill.training.build import make_trainer
from distill.training.engine import init_world
from distill.training.trainer import Trainer
from launch.common.data_options import recipe_line, resolve_recipe
from launch.common.next_steps import closing_lines, mlflow_lines

TRACKING_SECONDS = 15.0
"""What tracking gets to send the rest of a run that ends early."""


def main(argv: Sequence[str] | None = None) -> int:
    stop = signals.install_signal_handlers()
    args = parse(argv)
    main_rank = is_main_process(os.environ)
    watchdog: Watchdog | None = None
    trainer: Trainer | None = None
    try:
        recipe = resolve_recipe(args.config, args.overrides)
        if main_rank:
            print(recipe_line(recipe, args.config), flush=True)
        read_ds_config(args.deepspeed)  # a fault is reported before the ranks wait for each other
        world = init_world(args.local_rank, recipe.train.threads)
        watchdog = start_watchdog(recipe, world, stop)
        ds_config, line = choose_config(args.deepspeed, world, recipe.train.fp16_on_cpu)
        if main_rank:
            print(line, flush=True)
        warn_of_memory(recipe, world)
        trainer = make_trainer(recipe, ds_config, world, stop, watchdog)
        watchdog.on_failure = lambda: finish_tracking(trainer, "FAILED", "the watchdog ended the run")
        for line in mlflow_lines(trainer.tracker):
            print(line, flush=True)
        return end(trainer, watchdog, trainer.run())
    except (ValueError, FloatingPointError) as error:
        if watchdog is not None:
            watchdog.finish()  # the other ranks meet the same error, and end a little sooner or later
        if main_rank or isinstance(error, UnreadableError):  # every rank meets the others; one line is enough
            print(f"error: {error}", file=sys.stderr, flush=True)
        finish_tracking(trainer, "FAILED", str(error))
        return signals.FAILED if isinstance(error, FloatingPointError) else signals.USAGE_ERROR
    except RuntimeError as error:
        finish_tracking(trainer, "FAILED", str(error))
        if not is_communication_error(error):
            raise
        if watchdog is not None:
            # A rank of this host that has ended is named by the watchdog, which also ends this one.
            time.sleep(2 * PEER_EXIT_SECONDS + ON_FAILURE_SECONDS)
        rank, cause = os.environ.get("RANK", "0"), " ".join(str(error).split())[:300]
        what = "has not met" if watchdog is None else "has lost the connection to"
        signals.exit_now(signals.FAILED, f"error: rank {rank} {what} another rank: {cause}")
    except Exception as error:
        finish_tracking(trainer, "FAILED", f"{type(error).__name__}: {error}")
        raise
    finally:
        shutdown()


def warn_of_memory(recipe: Recipe, world: World) -> None:
    """Says on rank 0, before any weight is read, that the recipe will not fit into the GPU."""
    if world.is_main and world.device.type == "cuda":
        total = torch.cuda.get_device_properties(world.device).total_memory
        if warning := memory_warning(recipe, world.size, total):
            print(f"warning: {warning}", flush=True)


def start_watchdog(recipe: Recipe, world: World, stop: signals.StopRequests) -> Watchdog:
    """From here on the ranks see each other end, and stop together. Collective."""
    peers = all_gather_object(Peer(world.rank, socket.gethostname(), identify(os.getpid())))

    def gpu_free() -> float:
        return float(torch.cuda.mem_get_info(world.device)[0]) / GIB

    on_gpu = world.device.type == "cuda"
    watchdog = Watchdog(recipe.watchdog, recipe.run_dir, stop, world.rank, peers, gpu_free if on_gpu else None)
    stop.defer_to_step_boundary()
    return watchdog.start()


def end(trainer: Trainer, watchdog: Watchdog, stopped: signals.Stopped | None) -> int:
    """Says how the run ended; no rank leaves before all are ready, because a launcher ends the others then."""
    trainer.metrics.close()
    said = str(stopped) if stopped else f"update {trainer.progress.updates} is made"
    finish_tracking(trainer, "KILLED" if stopped else "FINISHED", said)
    if trainer.engine.world.is_main:
        print(stopped or "\n".join(closing_lines(trainer)), flush=True)
    watchdog.finish()
    trainer.engine.barrier()
    return signals.STOPPED if stopped else signals.FINISHED


_EVENTS: dict[str, Event] = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "trouble"}


def finish_tracking(trainer: Trainer | None, status: str, message: str) -> None:
    """Tells the user's command how the run ended, and sends the rest to MLflow."""
    if trainer is not None:
        progress = trainer.progress
        facts = {"update": progress.updates, "best_update": progress.best_update, "best_score": progress.best_score}
        trainer.tracker.notify(_EVENTS[status], message, max_steps=trainer.recipe.train.max_steps, **facts)
        trainer.tracker.finish(status, 60.0 if status == "FINISHED" else TRACKING_SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
