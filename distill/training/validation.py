"""Validation: reads what the student writes during training; the checkpoint that spells best is kept.

The loss says nothing about words (docs/LOG.md), so it decides nothing. Every rank samples and reads its share of the
held-out pictures; all ranks know the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from anytext2.core.batch import Sample, TextLine, collate
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset, SampleError
from anytext2.data.records import Records
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.adapters.roles import AdapterRoles
from distill.config.schema import Recipe
from distill.data.build import FIRST_HELD_OUT_INDEX
from distill.data.splits import split_indices
from distill.diffusion.sampling import SamplingPreparation, SamplingSpec, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from distill.evaluation.ocr import OcrEngine, OcrNotInstalled, RapidOcr, exact_match, ned
from distill.evaluation.strokes import LineStructure, line_structure
from distill.runtime.world import World
from distill.training.engine import Engine
from distill.training.inputs import without_dropout
from distill.training.null_objects import Heartbeat
from distill.training.state import Progress
from distill.viz.contact_sheet import evenly_spaced_indices
from distill.viz.grids import to_uint8

HELD_OUT = "held_out"
"""Folder of drawn held-out pictures in the run folder."""

LANGUAGES = ("Latin", "Chinese")
"""Those whose spelling has a curve of its own."""

SUMS = ("lines", "hits", "ned", "strokes", "structure", *(f"{n} {of}" for n in LANGUAGES for of in ("lines", "hits")))

BATCH = 8
"""Pictures sampled at once."""


class Validation(Protocol):
    def is_due(self, updates: int, last: bool) -> bool:
        """Whether the run is evaluated after this update; last: the run ends with it."""

    def run(self, progress: Progress) -> dict[str, float]:
        """The scores by their metric names; `progress` remembers the best ones. Collective."""

    def is_out_of_patience(self, progress: Progress) -> bool:
        """Whether eval.patience evaluations have passed without a better score."""


class NullValidation:
    """Evaluates nothing: eval.every=0."""

    def is_due(self, updates: int, last: bool) -> bool:
        return False

    def run(self, progress: Progress) -> dict[str, float]:
        return {}

    def is_out_of_patience(self, progress: Progress) -> bool:
        return False


class SpellingValidation:
    """Scores the student at `eval.steps` steps on this rank's share of the held-out pictures."""

    def __init__(
        self,
        recipe: Recipe,
        samples: Sequence[Sample],
        ocr: OcrEngine,
        roles: AdapterRoles,
        schedule: NoiseSchedule,
        engine: Engine,
        heartbeat: Heartbeat,
    ) -> None:
        self._recipe, self._samples, self._ocr = recipe, samples, ocr
        self._roles, self._schedule, self._engine, self._heartbeat = roles, schedule, engine, heartbeat
        self._spec = SamplingSpec("student", recipe.student.sampler, recipe.eval.steps)
        self._options = recipe.student.options

    def is_due(self, updates: int, last: bool) -> bool:
        return last or updates % self._recipe.eval.every == 0

    def is_out_of_patience(self, progress: Progress) -> bool:
        return 0 < self._recipe.eval.patience <= progress.evaluations_since_best

    def run(self, progress: Progress) -> dict[str, float]:
        with without_dropout(self._roles.wrapped), self._engine.averaged(), torch.no_grad():
            own = self._read(progress)
        device = self._engine.world.device
        sums = self._engine.total(torch.tensor([own[name] for name in SUMS], device=device))
        scores = _scores(dict(zip(SUMS, sums.tolist(), strict=True)))
        progress.keep_best(scores["eval/exact_match"], scores["eval/ned"])
        return scores

    def _read(self, progress: Progress) -> dict[str, float]:
        """The sums over the lines of this rank's pictures, by the names in `SUMS`."""
        sums = dict.fromkeys(SUMS, 0.0)
        prepare = SamplingPreparation(self._roles, self._recipe.seed, None)
        for first in range(0, len(self._samples), BATCH):
            batch = collate(self._samples[first : first + BATCH]).to(self._engine.world.device).normalized()
            (sampled,) = sample_batch(self._roles, prepare(batch), [self._spec], self._schedule, self._options)
            images, glyphs = to_uint8(sampled.image), batch.glyph.to(torch.uint8).cpu().numpy()
            for image, glyph, lines in zip(images, glyphs, batch.nonblank_lines, strict=True):
                texts = self._ocr.recognize_lines(image, [line.polygon for line in lines])
                for line, text in zip(lines, texts, strict=True):
                    _add_line(sums, line, text, line_structure(image, line.polygon, glyph[0]))
            self._heartbeat("evaluation")
        return sums


def _add_line(sums: dict[str, float], line: TextLine, read: str, strokes: LineStructure | None) -> None:
    own = {"lines": 1.0, "hits": exact_match(read, line.text), "ned": ned(read, line.text)}
    if line.language in LANGUAGES:
        own |= {f"{line.language} lines": 1.0, f"{line.language} hits": own["hits"]}
    if strokes is not None:
        own |= {"strokes": 1.0, "structure": strokes.score}
    for name, value in own.items():
        sums[name] += value


def _scores(sums: Mapping[str, float]) -> dict[str, float]:
    """The scores by their metric names. One that no line says anything about is left out."""
    ratios = {
        "eval/exact_match": ("hits", "lines"),
        "eval/ned": ("ned", "lines"),
        "eval/structure": ("structure", "strokes"),
        **{f"eval/exact_match_{name.lower()}": (f"{name} hits", f"{name} lines") for name in LANGUAGES},
    }
    return {name: sums[over] / sums[under] for name, (over, under) in ratios.items() if sums[under]}


def open_ocr(recipe: Recipe) -> RapidOcr | None:
    """The OCR engine of the validation; None where the recipe asks for none.

    Raises ValueError where no student is trained or there is no engine. Reads nothing of the run's.
    """
    if not recipe.eval.every:
        return None
    if recipe.objective_config.student is None:
        raise ValueError(
            f"eval.every={recipe.eval.every}: objective {recipe.objective['name']} trains no student to read"
        )
    try:
        return RapidOcr()
    except OcrNotInstalled as error:
        raise ValueError(f"eval.every={recipe.eval.every}: {error}") from error


def draws_held_out(recipe: Recipe) -> bool:
    """Whether `make_validation` draws the held-out pictures into the run folder."""
    return recipe.eval.every > 0 and not recipe.eval.data and not recipe.data.sources


def make_validation(
    recipe: Recipe,
    ocr: OcrEngine | None,
    trained_on: AnyWordDataset,
    roles: AdapterRoles,
    schedule: NoiseSchedule,
    engine: Engine,
    heartbeat: Heartbeat,
) -> Validation:
    """The validation that the recipe asks for; ocr: from `open_ocr`. Collective.

    Raises ValueError where no pictures are held out, or none of them has a line.
    """
    if ocr is None:
        return NullValidation()
    world = engine.world
    dataset, indices = _held_out(recipe, world, trained_on)
    samples, unreadable = [], 0
    for index in indices[world.rank :: world.size]:
        try:
            samples.append(dataset.sample(index, 0))
        except SampleError:
            unreadable += 1
    counts = engine.total(torch.tensor([sum(bool(s.nonblank_lines) for s in samples), unreadable], device=world.device))
    with_lines, unreadable = counts.tolist()
    if not with_lines:
        raise ValueError("eval: no held-out picture with a line can be read; name others in eval.data")
    if world.is_main:
        left_out = f"; {unreadable} more cannot be read" if unreadable else ""
        print(f"eval: {with_lines} held-out pictures every {recipe.eval.every} updates{left_out}", flush=True)
    return SpellingValidation(recipe, samples, ocr, roles, schedule, engine, heartbeat)


def _held_out(recipe: Recipe, world: World, trained_on: AnyWordDataset) -> tuple[AnyWordDataset, list[int]]:
    """The dataset to evaluate on, and which of its pictures: `eval.data`, else the `val` part, else drawn ones."""
    config, data = recipe.eval, recipe.data
    sources = [Path(source) for source in config.data]
    if not sources and data.sources:
        if data.part != "train":
            raise ValueError(f"eval: data.part={data.part} holds nothing out; name annotation files in eval.data")
        assert isinstance(trained_on.records, Records), "a run's records know their names"
        val = split_indices(trained_on.records, data.split, "val")
        dataset = AnyWordDataset(trained_on.records, data.options, recipe.seed, trained_on.fonts)
        return dataset, [int(index) for index in val[evenly_spaced_indices(len(val), config.samples)]]
    if not sources:
        folder, drawn = recipe.run_dir / HELD_OUT, SyntheticConfig(size=data.synthetic.size)
        if world.is_main:
            write_dataset(folder, config.samples, drawn, data.synthetic.seed, FIRST_HELD_OUT_INDEX)
        if world.size > 1:
            dist.barrier()
        sources = [folder / "data.json"]
    options = data.options
    records, _ = load_records(sources, options.wm_threshold, options.tells_watermarks, max_faulty=data.max_faulty)
    return AnyWordDataset(records, options, recipe.seed, trained_on.fonts), evenly_spaced_indices(
        len(records), config.samples
    )
