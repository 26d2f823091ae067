"""No micro-step makes the host wait for the accelerator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from anytext2.model.anytext2 import AnyText2
from distill.config.recipes import find_recipe, load_recipe
from distill.config.schema import Recipe
from distill.objectives.phased import Phased
from launch.bench import bench_step
from launch.bench.host_waits import count_copies

TINY = ["data.options.resolution=128", "model.config=tiny"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_step, "FOLDER", tmp_path)


def tiny(overrides: Sequence[str] = (), config: Path | None = None) -> Recipe:
    return load_recipe(config, [*TINY, *overrides])


def copies_of(recipe: Recipe) -> dict[str, int]:
    return dict(count_copies(recipe, bench_step.load_batch(recipe, 2)))


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["rtx4090x3.yaml", "rtx4090x3_2step.yaml"])
def test_the_production_step_never_waits(name: str) -> None:
    copies = copies_of(tiny(config=find_recipe(Path(name))))
    assert set(copies) == {"async"} and copies["async"] < 30, copies


@pytest.mark.heavy
@pytest.mark.parametrize(
    "options",
    [
        ["objective.name=consistency", "objective.target_ema=true", "train.ema_decay=0.9"],
        ["objective.name=trajectory"],
        ["objective.name=x0_regression"],
        ["objective.name=distribution_matching", "objective.fake_updates=1"],
        ["objective.name=denoise", "objective.rollout=0.9", "objective.context_dropout=0.5"],
        ["objective.name=phased", "objective.text_weight=1.0", "objective.terms={ocr_features: {weight: 0.1}}"],
        ["objective.name=phased", "objective.terms={gradient: {weight: 0.1}, focal_frequency: {weight: 0.1}}"],
        ["objective.name=phased", "objective.terms={topology: {weight: 0.1}}"],
    ],
    ids=lambda options: "-".join(options)[:60],
)
def test_no_objective_waits(options: list[str]) -> None:
    assert set(copies_of(tiny(options))) == {"async"}


@pytest.mark.heavy
def test_a_blocking_copy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = AnyText2.control_maps

    def control_maps(self: AnyText2, conditions: Any) -> Any:
        return original(self, conditions.map(lambda x: x * torch.tensor([1.0]).to(x)))

    monkeypatch.setattr(AnyText2, "control_maps", control_maps)
    assert copies_of(tiny(["objective.name=phased"]))["blocking"] == 10  # five conditions for two roles


@pytest.mark.heavy
@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.tolist, bool], ids=["item", "tolist", "bool"])
def test_a_value_that_the_host_reads_is_an_error(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Phased.loss

    def loss(self: Phased, roles: Any, item: Any) -> Any:
        output = original(self, roles, item)
        read(output.loss)
        return output

    monkeypatch.setattr(Phased, "loss", loss)
    with pytest.raises((RuntimeError, NotImplementedError), match="[Mm]eta"):
        copies_of(tiny(["objective.name=phased"]))
