"""launch/train.py with something done to it on the way: functions for forked ranks, which they change for good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from distill.compilation.blocks import BlockPrograms
from distill.compilation.graphs import GraphedCalls
from distill.compilation.setup import recomputes, step_networks
from distill.training import build
from distill.training.trainer import Trainer
from launch import train
from tests.helpers.models.rerun import Rerun


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


def train_on_fast_path(argv: list[str], kind: str, stop: int) -> None:
    """The command with `blocks` traced by torch but not translated, or with `graphs` that compute again; stop: as in
    `train_with_overflows`. It fails where no block or call takes the fast path, or where one is refused."""
    paths: list[Any] = []

    def fail(line: str) -> None:
        raise AssertionError(line)

    def make(recipe: Any, roles: Any, world: Any) -> Any:
        networks = step_networks(roles)
        if kind == "blocks":
            path: Any = BlockPrograms(fail, "eager")
            path.compile(networks)
        else:
            path = GraphedCalls(Rerun(), fail, lambda: roles.active, captures_training=not recomputes(recipe))
            path.capture([*networks, roles.model.cond_stage_model.tower.transformer])
        paths.append(path)
        return path

    def check(trainer: Any) -> None:
        assert paths[0].count > 0

    build.make_compilation = make
    after_each_update(check)
    train_with_overflows(argv, (), stop)


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
