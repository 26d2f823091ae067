"""The real trainer on faster data: latents and contexts from a feature cache, and several picture sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.config.recipes import load_recipe
from distill.runtime.world import World
from distill.tracking.metric_names import LOSS, read_metrics
from distill.training.build import make_trainer
from distill.training.trainer import Trainer
from launch import build_lmdb_cache, train
from tests.helpers.models.mini_model import write_mini
from tests.helpers.paths import ROOT
from tests.helpers.processes.ranks import all_output, returned, start_ranks

ZERO2 = ROOT / "ds_configs" / "zero2.json"
BUCKETS = "data.buckets=[64,128x64]"
CACHED = ("data.latents=cache", "data.captions=cache")

# Nothing that a store holds in another way than it is drawn: edited areas and turned hints.
RECIPE = """
data:
  workers: 1
  options: {resolution: 64, max_lines: 2, mask_img_prob: 0.0, font_hint_randaug: false}
objective: {name: consistency, w_min: 2.0, w_max: 4.0, solver_steps: 10, teacher_interval: 100}
lora: {rank: 2, alpha: 4}
train: {effective_batch: 4, micro_batch: 2, max_steps: 2, learning_rate: 2.0e-3, threads: 1}
log: {every: 1}
tracking: {enabled: false}
"""


@dataclass(frozen=True)
class Seen:
    """What one micro-batch was: sizes of its latents and pictures, and rows whose context came with it."""

    latent: tuple[int, ...]
    image: tuple[int, ...]
    contexts: int


def watched(argv: list[str]) -> list[Seen]:
    """The command; returns the micro-batches that were trained on."""
    seen: list[Seen] = []
    original = Trainer.run

    def run(trainer: Any) -> None:
        forward = trainer.engine.forward

        def noted(item: Any) -> Any:
            rows = sum(n > 0 for n in item.batch.context_chunks)
            seen.append(Seen(tuple(item.latent.shape[-2:]), tuple(item.batch.image.shape[-2:]), rows))
            return forward(item)

        trainer.engine.forward = noted
        original(trainer)

    Trainer.run = run  # type: ignore[method-assign]  # this process is forked for one call
    assert train.main(argv) == 0
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two shapes, a recipe, and the stores of the run with one size and of the run with two."""
    folder = tmp_path_factory.mktemp("train_data")
    write_dataset(folder / "data", 12, SyntheticConfig(size=96), seed=4)
    for path in sorted((folder / "data" / "imgs").iterdir())[:6]:
        Image.open(path).resize((192, 96)).save(path)
    model = OmegaConf.to_yaml(OmegaConf.from_dotlist(write_mini(folder)))
    rest = f"run_root: {folder / 'runs'}\n{model}"
    (folder / "recipe.yaml").write_text(RECIPE + rest, encoding="utf-8")
    build = [str(folder / "data" / "data.json"), "--recipe", str(folder / "recipe.yaml"), "--latents", "--captions"]
    build += ["--workers", "0", "--out", str(folder / "features.lmdb")]
    assert build_lmdb_cache.main(build) == 0 and build_lmdb_cache.main([*build, BUCKETS]) == 0
    return folder


def changes(folder: Path, name: str, *more: str) -> list[str]:
    return [f"data.sources=[{folder / 'data' / 'data.json'}]", "data.part=all", f"name={name}", *more]


@pytest.mark.process
def test_stores_and_sizes_in_the_trainer(folder: Path) -> None:
    store = f"data.cache={folder / 'features.lmdb'}"
    runs = {
        "online": (),
        "cached": (store, *CACHED),
        "sizes": (BUCKETS,),
        "cached_sizes": (store, *CACHED, BUCKETS),
    }
    command = ["--deepspeed", str(ZERO2), "--config", str(folder / "recipe.yaml")]
    started = {name: start_ranks(1, watched, [*command, *changes(folder, name, *more)]) for name, more in runs.items()}
    results = {name: ranks.wait(500.0) for name, ranks in started.items()}
    seen = {name: returned(result)[0] for name, result in results.items()}
    losses = {name: _losses(folder / "runs" / name) for name in runs}
    assert all(len(batches) == 4 for batches in seen.values()) and all(len(loss) == 2 for loss in losses.values())
    assert "audit: one batch" in results["cached"][0].stdout, all_output(results["cached"])

    assert {batch.image for batch in seen["online"]} == {(64, 64)} and seen["online"][0].contexts == 0
    for name in ("cached", "cached_sizes"):
        assert {(batch.image, batch.contexts) for batch in seen[name]} == {((0, 0), 2)}, "no picture, no encoding"
    for name in ("sizes", "cached_sizes"):
        shapes = [batch.latent for batch in seen[name]]
        assert shapes[:2] == [shapes[0]] * 2 and shapes[2:] == [shapes[2]] * 2, "an update has one size"
        assert set(shapes) == {(8, 8), (8, 16)}
    # The same run up to the rounding of what is stored to float16.
    assert losses["cached"] == pytest.approx(losses["online"], rel=1e-2)
    assert losses["cached_sizes"] == pytest.approx(losses["sizes"], rel=1e-2)
    assert losses["online"] != pytest.approx(losses["sizes"], rel=1e-2), "or this would say nothing"


@pytest.mark.process
def test_the_audit_sees_the_edits_of_stored_latents(folder: Path) -> None:
    """With more lines than a sample holds a picture is edited when drawn, and is not when its latents are stored."""
    options = ["data.options.max_lines=1", "data.options.mask_img_prob=1.0"]
    store, source = folder / "edited.lmdb", folder / "data" / "data.json"
    build = [str(source), "--recipe", str(folder / "recipe.yaml"), "--latents", "--workers", "0", "--out", str(store)]
    assert build_lmdb_cache.main([*build, *options]) == 0
    more = [f"data.cache={store}", "data.latents=cache", "train.max_steps=1", *options]
    command = ["--deepspeed", str(ZERO2), "--config", str(folder / "recipe.yaml")]
    result = start_ranks(1, watched, [*command, *changes(folder, "edited", *more)]).wait(300.0)
    assert len(returned(result)[0]) == 2 and "audit: one batch" in result[0].stdout, all_output(result)


def _losses(run_dir: Path) -> list[float]:
    return [record[LOSS] for record in read_metrics(run_dir)]


@pytest.mark.process
def test_contexts_of_a_text_tower_that_is_trained_are_refused(folder: Path) -> None:
    store = f"data.cache={folder / 'features.lmdb'}"
    recipe = load_recipe(folder / "recipe.yaml", changes(folder, "refused", store, "data.captions=cache"))
    recipe = replace(recipe, objective={"name": "denoise", "scope": "all"})
    with pytest.raises(ValueError, match="data.captions=cache: this run trains the text tower.*captions=encode"):
        make_trainer(recipe, {}, World(0, 0, 1, torch.device("cpu")))
