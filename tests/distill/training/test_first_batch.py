"""The run stops before its first step, on one line, when a planted fault makes its first batch wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset
from anytext2.glyphs.fonts import load_font_table
from anytext2.model.anytext2 import AnyText2
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.adapters.roles import AdapterRoles
from distill.checks.model_checks import FirstBatchError
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import Recipe
from distill.data.batch_sampler import ShuffledBatchSampler
from distill.data.latents import LatentSource
from distill.data.loader import BatchSizes
from distill.diffusion.schedule import NoiseSchedule
from distill.inference.model import make_model, make_schedule
from distill.objectives.base import Objective
from distill.runtime.world import World
from distill.training.build import make_objective, make_roles
from distill.training.first_batch import AUDIT_PICTURE, SAMPLES_PICTURE, check_first_batch
from distill.training.inputs import MicroBatches, StepInputs
from distill.training.previews import SamplePreviews
from distill.training.state import Progress
from tests.helpers.models.mini_model import write_mini


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("preflight")
    write_dataset(folder / "data", 8, SyntheticConfig(size=96), seed=1)
    overrides = [
        *(f"run_root={folder}", f"data.sources=[{folder}/data/data.json]", "name=checked"),
        *("data.options.resolution=96", "data.options.max_lines=3", "lora.rank=2", "lora.alpha=2"),
        *("train.effective_batch=4", "train.micro_batch=4", "log.preview_samples=2"),
        *write_mini(folder),
    ]
    return load_recipe(DEFAULT_RECIPE, overrides)


@dataclass
class Parts:
    """What a run holds before its first step; of the engine only what the checks ask for."""

    recipe: Recipe
    objective: Objective
    roles: AdapterRoles
    schedule: NoiseSchedule
    dataset: AnyWordDataset
    engine: Any
    drawn: list[Path]

    @property
    def tracker(self) -> Any:
        return SimpleNamespace(artifact=lambda path, *shown: self.drawn.append(path))

    def check(self) -> None:
        sampler = ShuffledBatchSampler(len(self.dataset), self.recipe.seed)
        batches = MicroBatches(self.dataset, sampler, self.engine.plan, self.engine.world, 0)
        inputs = StepInputs(
            self.recipe.seed, self.engine.world.device, LatentSource(self.roles.model, keep_in_memory=False)
        )
        check_first_batch(
            self.recipe, self.objective, self.roles, self.engine, batches, inputs, self.tracker, Progress()
        )


@pytest.fixture
def parts(recipe: Recipe) -> Parts:
    return parts_of(recipe)


def parts_of(recipe: Recipe) -> Parts:
    recipe.run_dir.mkdir(exist_ok=True)
    records, _ = load_records(recipe.data.sources)
    dataset = AnyWordDataset(records, recipe.data.options, recipe.seed, load_font_table())
    model = make_model(recipe.model, recipe.seed)
    schedule = make_schedule(model.cfg)
    objective = make_objective(recipe, schedule)
    roles, _ = make_roles(model, objective, recipe)
    world = World(0, 0, 1, torch.device("cpu"))
    engine = SimpleNamespace(plan=BatchSizes(4, 4, 1), world=world, gather=lambda value: [value])
    return Parts(recipe, objective, roles, schedule, dataset, engine, [])


def plant(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    sample = AnyWordDataset.sample
    monkeypatch.setattr(AnyWordDataset, "sample", lambda self, *key: replace(sample(self, *key), **changes))


@pytest.mark.heavy
def test_a_sound_batch_passes_and_is_drawn(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: value.clone() for name, value in parts.roles.wrapped.state_dict().items()}
    parts.check()
    assert "are sound" in capsys.readouterr().out
    with Image.open(parts.recipe.run_dir / AUDIT_PICTURE) as picture:
        assert picture.width > 500 and picture.height > 500
    with Image.open(parts.recipe.run_dir / SAMPLES_PICTURE) as picture:
        assert picture.width > 1500 and picture.height > 500  # the 8 samples of the data, four a row
    # The samples are recorded twice: as a file, and as the first picture of the previews' slider.
    assert parts.drawn == [parts.recipe.run_dir / n for n in (AUDIT_PICTURE, SAMPLES_PICTURE, SAMPLES_PICTURE)]
    assert all(torch.equal(before[name], value) for name, value in parts.roles.wrapped.state_dict().items())


@pytest.mark.heavy
def test_the_first_batch_with_text_is_checked(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without text would be sound whatever is drawn. If the next ones have none either, the run stops."""
    first_of, read = MicroBatches.first_of, []

    def blank_before(last: int) -> None:
        def blank(self: MicroBatches, batch: int, *rest: Any) -> Any:
            read.append(batch)
            found = first_of(self, batch, *rest)
            texts = tuple((" ",) * n for n in found.batch.n_lines)
            return replace(found, batch=replace(found.batch, texts=texts)) if batch < last else found

        monkeypatch.setattr(MicroBatches, "first_of", blank)

    blank_before(2)
    parts.check()
    assert read == [0, 1, 2, 2]
    blank_before(100)
    with pytest.raises(
        FirstBatchError, match="texts: the first micro-batches of 8 batches: no sample has a line of text"
    ):
        parts.check()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"glyph": torch.ones(1, 96, 96, dtype=torch.uint8)}, "glyph"),
        ({"glyph_line": torch.zeros(3, 80, 512, dtype=torch.uint8)}, "glyph line"),
        ({"glyph_line": torch.full((3, 80, 512), 255, dtype=torch.uint8)}, "glyph line"),
        ({"color": torch.full((3, 3), 300.0)}, "color"),
        ({"image": torch.full((3, 96, 96), 2.0)}, "image"),
        ({"inverse_mask": torch.full((1, 96, 96), 7, dtype=torch.uint8)}, "inverse"),
        ({"text_caption": "Text says *, *, *."}, "placeholder"),
    ],
)
def test_a_planted_fault_in_the_batch_stops_the_run(
    parts: Parts, changes: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, **changes)
    with pytest.raises(ValueError) as caught:
        parts.check()
    message = str(caught.value)
    assert "\n" not in message and words in message.lower().replace("_", " ").replace("colour", "color"), message


@pytest.mark.heavy
def test_a_fault_planted_on_purpose_is_named_and_stops_nothing(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = replace(recipe, model=replace(recipe.model, fault_injection="glyph_page_all_ink"))
    parts_of(planted).check()
    told = capsys.readouterr().out
    assert "model.fault_injection=glyph_page_all_ink: a fault on purpose. The audit found" in told and "glyph" in told
    assert "are sound" not in told


@pytest.mark.heavy
def test_a_writenet_that_looks_at_the_time_stops_the_run(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    predict, write = AnyText2.predict_noise, AnyText2.control_maps
    times: list[torch.Tensor] = []

    def remembering(self: AnyText2, x: torch.Tensor, t: torch.Tensor, *rest: Any) -> torch.Tensor:
        times.append(t.float().mean() / 1000)
        return predict(self, x, t, *rest)

    def leaking(self: AnyText2, conditions: Any) -> tuple[torch.Tensor, ...]:
        return tuple(maps + (times[-1] if times else 0.0) for maps in write(self, conditions))

    monkeypatch.setattr(AnyText2, "predict_noise", remembering)
    monkeypatch.setattr(AnyText2, "control_maps", leaking)
    with pytest.raises(FirstBatchError, match="audit:"):
        parts.check()


@pytest.mark.heavy
def test_a_base_weight_that_requires_a_gradient_stops_the_run(parts: Parts) -> None:
    parts.roles.model.model.diffusion_model.out[2].weight.requires_grad_(True)
    with pytest.raises(FirstBatchError, match="requires a gradient"):
        parts.check()


@pytest.mark.heavy
def test_previews_show_the_student(parts: Parts) -> None:
    device = parts.engine.world.device
    SamplePreviews(
        parts.recipe, parts.objective, parts.roles, parts.schedule, parts.dataset, device, parts.tracker
    ).draw(7)
    path = parts.recipe.run_dir / "previews" / "step-0000007.png"
    with Image.open(path) as picture:
        assert picture.width > 4 * 96
    assert path in parts.drawn
