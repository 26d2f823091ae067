"""Reads what the student writes while it is trained: the checkpoint that spells best is the one to keep.

Loss says nothing about words (docs/LOG.md), so it decides nothing. Every rank draws and reads its share of the held-out
pictures; all know the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from anytext2.core.batch import Sample, TextLine, collate
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset, SampleError
from anytext2.data.records import Records
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.config.recipes import sampling_options, student_sampler
from distill.config.schema import Recipe
from distill.data.build import FIRST_HELD_OUT_INDEX
from distill.data.splits import split_indices
from distill.diffusion.sampling import SamplerOptions, SamplingSpec, prepare_sampling, sample_batch
from distill.evaluation.ocr import OcrEngine, OcrNotInstalled, RapidOcr, exact_match, ned
from distill.evaluation.strokes import LineStructure, line_structure
from distill.objectives import OBJECTIVES
from distill.runtime.world import World
from distill.training.first_batch import without_dropout
from distill.viz.contact_sheet import evenly_spaced_indices
from distill.viz.grids import to_uint8

if TYPE_CHECKING:
    from distill.training.trainer import Progress, Session

HELD_OUT = "held_out"
"""Folder of drawn held-out pictures in the run folder."""

LANGUAGES = ("Latin", "Chinese")
"""Those whose spelling has a curve of its own."""

SUMS = ("lines", "hits", "ned", "strokes", "structure", *(f"{n} {of}" for n in LANGUAGES for of in ("lines", "hits")))

TOGETHER = 8
"""Pictures drawn at once."""


class Validator:
    """Scores the student at `eval.steps` steps on this rank's share of the held-out pictures."""

    def __init__(self, samples: Sequence[Sample], reader: OcrEngine, options: SamplerOptions) -> None:
        self._samples, self._reader, self._options = samples, reader, options

    def __call__(self, session: Session) -> dict[str, float]:
        """The scores by their names in the tracker; keeps the best ones in `session.progress`. Collective."""
        with without_dropout(session), session.engine.averaged(), torch.no_grad():
            own = self._read(session)
        sums = session.engine.total(torch.tensor(list(own.values()), device=session.engine.world.device))
        found = _scores(dict(zip(own, sums.tolist(), strict=True)))
        _keep_best(session.progress, (found["eval/exact_match"], found["eval/ned"]))
        return found

    def _read(self, session: Session) -> dict[str, float]:
        """The sums over the lines of this rank's pictures, by the names in `SUMS`."""
        recipe, device = session.recipe, session.engine.world.device
        spec = SamplingSpec("student", student_sampler(recipe), recipe.eval.steps)
        sums = dict.fromkeys(SUMS, 0.0)
        for first in range(0, len(self._samples), TOGETHER):
            batch = collate(self._samples[first : first + TOGETHER]).to(device).floating()
            scene = prepare_sampling(session.roles, batch, recipe.seed, None)
            (painting,) = sample_batch(session.roles, scene, [spec], session.schedule, self._options)
            images, pages = to_uint8(painting.image), batch.glyph.to(torch.uint8).cpu().numpy()
            for image, page, lines in zip(images, pages, batch.written, strict=True):
                read = self._reader.recognize_lines(image, [line.polygon for line in lines])
                for line, found in zip(lines, read, strict=True):
                    _add_line(sums, line, found, line_structure(image, line.polygon, page[0]))
            session.beat("evaluation")
        return sums


def _add_line(sums: dict[str, float], line: TextLine, found: str, strokes: LineStructure | None) -> None:
    own = {"lines": 1.0, "hits": exact_match(found, line.text), "ned": ned(found, line.text)}
    if line.language in LANGUAGES:
        own |= {f"{line.language} lines": 1.0, f"{line.language} hits": own["hits"]}
    if strokes is not None:
        own |= {"strokes": 1.0, "structure": strokes.score}
    for name, value in own.items():
        sums[name] += value


def _scores(sums: Mapping[str, float]) -> dict[str, float]:
    """The scores by their names in the tracker. One that no line says anything about is left out."""
    ratios = {
        "eval/exact_match": ("hits", "lines"),
        "eval/ned": ("ned", "lines"),
        "eval/structure": ("structure", "strokes"),
        **{f"eval/exact_match_{name.lower()}": (f"{name} hits", f"{name} lines") for name in LANGUAGES},
    }
    return {name: sums[over] / sums[under] for name, (over, under) in ratios.items() if sums[under]}


def make_validator(recipe: Recipe, world: World, trained_on: AnyWordDataset) -> Validator | None:
    """None where the recipe asks for none. Collective.

    Raises ValueError where no student is trained, no pictures are held out, none of them has a line, or there is no OCR
    engine.
    """
    if not recipe.eval.every:
        return None
    if OBJECTIVES[recipe.objective["name"]].trains != "lora":
        raise ValueError(
            f"eval.every={recipe.eval.every}: objective {recipe.objective['name']} trains no student to read"
        )
    try:
        reader = RapidOcr()
    except OcrNotInstalled as error:
        raise ValueError(f"eval.every={recipe.eval.every}: {error}") from error
    dataset, indices = _held_out(recipe, world, trained_on)
    samples, skipped = [], 0
    for index in indices[world.rank :: world.size]:
        try:
            samples.append(dataset.sample(index, 0))
        except SampleError:
            skipped += 1
    counts = torch.tensor([sum(bool(sample.written) for sample in samples), skipped], device=world.device)
    if world.size > 1:
        dist.all_reduce(counts)
    readable, skipped = counts.tolist()
    if not readable:
        raise ValueError("eval: no held-out picture with a line can be read; name others in eval.data")
    if world.is_main:
        left_out = f"; {skipped} more cannot be read" if skipped else ""
        print(f"eval: {readable} held-out pictures every {recipe.eval.every} updates{left_out}", flush=True)
    return Validator(samples, reader, sampling_options(recipe))


def patience_is_exhausted(recipe: Recipe, progress: Progress) -> bool:
    """Whether the spelling has not got better for as many evaluations as `eval.patience` allows."""
    return bool(recipe.eval.every and 0 < recipe.eval.patience <= progress.evaluations_since_best)


def _keep_best(progress: Progress, found: tuple[float, float]) -> None:
    if progress.best_score is None or found > (progress.best_score, progress.best_ned):
        progress.best_score, progress.best_ned = found
        progress.best_update, progress.evaluations_since_best = progress.updates, 0
    else:
        progress.evaluations_since_best += 1


def _held_out(recipe: Recipe, world: World, trained_on: AnyWordDataset) -> tuple[AnyWordDataset, list[int]]:
    """The dataset to judge on, and which of its pictures: `eval.data`, else the `val` part, else drawn ones."""
    section, data = recipe.eval, recipe.data
    sources = [Path(source) for source in section.data]
    if not sources and data.sources:
        if data.part != "train":
            raise ValueError(f"eval: data.part={data.part} holds nothing out; name annotation files in eval.data")
        assert isinstance(trained_on.records, Records), "a run's records know their names"
        val = split_indices(trained_on.records, data.split, "val")
        dataset = AnyWordDataset(trained_on.records, data.options, recipe.seed, trained_on.fonts)
        return dataset, [int(index) for index in val[evenly_spaced_indices(len(val), section.samples)]]
    if not sources:
        folder, drawn = recipe.run_dir / HELD_OUT, SyntheticConfig(size=data.synthetic.size)
        if world.is_main:
            write_dataset(folder, section.samples, drawn, data.synthetic.seed, FIRST_HELD_OUT_INDEX)
        if world.size > 1:
            dist.barrier()
        sources = [folder / "data.json"]
    options = data.options
    records, _ = load_records(sources, options.wm_threshold, options.cap_watermark, max_faulty=data.max_faulty)
    return AnyWordDataset(records, options, recipe.seed, trained_on.fonts), evenly_spaced_indices(
        len(records), section.samples
    )
