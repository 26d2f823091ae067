"""launch/train.py with something done to it on the way: functions for forked ranks, which they change for good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from distill.training.trainer import Trainer
from launch import train


def before_run(prepare: Callable[[Any], None]) -> None:
    """Calls `prepare(trainer)` right before the loop begins."""
    original = Trainer.run

    def run(trainer: Any) -> Any:
        prepare(trainer)
        return original(trainer)

    Trainer.run = run  # type: ignore[method-assign]


def after_run(look: Callable[[Any], None]) -> None:
    """Calls `look(trainer)` when the loop has ended without an error."""
    original = Trainer.run

    def run(trainer: Any) -> Any:
        result = original(trainer)
        look(trainer)
        return result

    Trainer.run = run  # type: ignore[method-assign]


def after_each_update(act: Callable[[Any], None]) -> None:
    """Calls `act(trainer)` when an update and what follows it (log lines, checkpoints) are done."""
    original = Trainer._after_update

    def after_update(trainer: Any, *rest: Any) -> None:
        original(trainer, *rest)
        act(trainer)

    Trainer._after_update = after_update  # type: ignore[method-assign]


def change_loss(trainer: Any, change: Callable[[Any, Any], Any]) -> None:
    """`change(item, output)` takes the place of the objective's output."""
    original = trainer.objective.loss
    trainer.objective.loss = lambda roles, item: change(item, original(roles, item))


def overflow_in(trainer: Any, batches: tuple[int, ...]) -> None:
    """In these global batches the last rank's loss has an infinite gradient."""

    def change(item: Any, output: Any) -> Any:
        world = trainer.engine.world
        hit = trainer.progress.batches in batches and world.rank == world.size - 1
        return replace(output, loss=output.loss * float("inf")) if hit else output

    change_loss(trainer, change)


def train_with_overflows(argv: list[str], batches: tuple[int, ...], stop: int) -> None:
    """The command with `overflow_in`; after update `stop` (0: never) the run writes a checkpoint and ends, as a signal
    makes it do."""

    def end(trainer: Any) -> None:
        if trainer.progress.updates == stop:
            trainer.checkpoints.save(trainer.progress, trainer.metrics.window)
            trainer.checkpoints.finish()
            trainer.watchdog.finish()  # from here on the other ranks may end
            trainer.engine.barrier()
            raise SystemExit(0)

    before_run(lambda trainer: overflow_in(trainer, batches))
    after_each_update(end)
    raise SystemExit(train.main(argv))
