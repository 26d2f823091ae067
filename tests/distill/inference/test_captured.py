"""Captured networks on a CPU, with a double of CUDA's graphs, on the tiny model with an adapter of random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anytext2.core.batch import Batch
from distill.adapters.merging import MergedRoles
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.diffusion.sampling import SamplingPreparation, SamplingSpec, sample_batch
from distill.inference.loading import SamplingModel, load_sampling_model, move_model
from distill.inference.model import make_model, make_schedule
from distill.inference.variants.captured import with_graphs
from tests.helpers.models.mini_model import mini_batch
from tests.helpers.models.rerun import Rerun
from tests.helpers.stored_run import write_run

SPECS = (SamplingSpec("teacher", "ddim", 2, 2.0), SamplingSpec("student", "ddim", 2))


@pytest.fixture
def model(tmp_path: Path) -> SamplingModel:
    recipe = load_recipe(DEFAULT_RECIPE, ["data.options.resolution=64", f"run_root={tmp_path}", "name=run"])
    write_run(tmp_path / "run", recipe, make_model(recipe.model, recipe.seed))
    return load_sampling_model(tmp_path / "run", None)


def latents(model: SamplingModel, batch: Batch) -> list[torch.Tensor]:
    inputs = SamplingPreparation(model.roles, 0, "")(batch.normalized())
    schedule = make_schedule(model.roles.model.cfg)
    return [sampled.latent for sampled in sample_batch(model.roles, inputs, SPECS, schedule)]


@pytest.mark.heavy
@pytest.mark.parametrize("is_merged", [False, True])
def test_captured_networks_draw_the_same_pictures(model: SamplingModel, is_merged: bool) -> None:
    if is_merged:
        model = replace(model, roles=MergedRoles(model.roles.wrapped, keep_teacher=True))  # type: ignore[attr-defined]
    expected, lines = latents(model, mini_batch()), []
    capture = Rerun()
    captured = with_graphs(model, lines.append, capture)
    first, records = latents(captured, mini_batch()), capture.records
    assert captured.graphs is not None and captured.graphs.count == 5  # one decoder for both
    assert all(torch.equal(a, b) for a, b in zip(first, expected, strict=True))
    again = latents(captured, mini_batch())
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert capture.records == records and not lines
    moved = move_model(captured, torch.device("cpu"))
    assert captured.graphs.count == 0
    assert all(torch.equal(a, b) for a, b in zip(latents(moved, mini_batch()), expected, strict=True))


@pytest.mark.heavy
def test_where_nothing_can_be_captured_one_line_says_so(model: SamplingModel) -> None:
    lines: list[str] = []
    assert with_graphs(model, lines.append) is model
    assert lines == ["--graphs: there are no CUDA graphs on a cpu; networks run eagerly"]
    added = replace(model, added=object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"--graphs: keeps the scales of --add as they are; add --merge"):
        with_graphs(added)
