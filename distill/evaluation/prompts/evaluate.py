"""Draws free prompts with student and teacher from the same noise and lets OCR engines read what they wrote."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from distill.diffusion.sampling import SamplingSpec
from distill.evaluation.ocr import OcrEngine
from distill.evaluation.prompts.scores import PromptRow, ReadPicture, score_row
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.prompt_file import Prompt
from distill.inference.request import DrawingRequest
from distill.inference.result import DrawingResult, DrawnRow
from distill.viz.grids import SampleImages, hint_to_image

PROGRESS_EVERY = 10  # prompts


@dataclass(frozen=True)
class PromptEvaluation:
    """The result. rows: ways of sampling, in their order. refused: prompts that cannot be drawn, with the reason.

    lines: of each picture the texts and what was read in them, for summary.json. examples: the first pictures with all
    rows, for grid and sheet.
    """

    rows: tuple[PromptRow, ...]
    refused: dict[str, str]
    lines: tuple[dict[str, Any], ...]
    examples: tuple[SampleImages, ...] = field(repr=False, default=())

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "prompts": list(self.lines),
            "refused": self.refused,
        }

    def metrics(self) -> dict[str, float]:
        return {name: value for row in self.rows for name, value in row.metrics().items()}


def evaluate_prompts(
    pipeline: AnyText2Pipeline,
    prompts: Sequence[Prompt],
    specs: Sequence[SamplingSpec],
    engines: Mapping[str, OcrEngine],
    shown: int = 8,
    resamples: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = print,
) -> PromptEvaluation:
    """Draws every prompt in every way of `specs` and scores what the engines read.

    Strength, weight of the text attention, seed and number of pictures are those of a prompt. engines: by the names
    that the scores get. shown: pictures in `examples`. progress: called with (prompts done, all prompts). say: gets a
    line for each note on a prompt, and for each prompt that cannot be drawn.
    Raises ValueError where no prompt can be drawn, or none has words to read.
    """
    accumulator = _Accumulator(specs, engines, shown)
    refused: dict[str, str] = {}
    for number, prompt in enumerate(prompts, 1):
        request = replace(prompt.request, teacher=False)
        try:
            result = pipeline.draw(request, on_warning=_say_of(prompt, say), specs=_specs_of(request, specs))
            accumulator.add(prompt, result, pipeline)
        except ValueError as error:
            refused[prompt.name] = str(error)
            say(f"{prompt.name}: {error}")
        if progress is not None and (number % PROGRESS_EVERY == 0 or number == len(prompts)):
            progress(number, len(prompts))
    if not accumulator.lines:
        raise ValueError(f"none of {len(prompts)} prompts has words that were drawn and can be read")
    rows = [accumulator.row(number, resamples, seed) for number in range(len(specs))]
    return PromptEvaluation(tuple(rows), refused, tuple(accumulator.lines), tuple(accumulator.examples))


def _say_of(prompt: Prompt, say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda note: say(f"{prompt.name}: {note}")


def _specs_of(request: DrawingRequest, specs: Sequence[SamplingSpec]) -> list[SamplingSpec]:
    return [replace(spec, strength=request.strength, attnx_scale=request.attnx_scale) for spec in specs]


class _Accumulator:
    """What was read so far, row by row."""

    def __init__(self, specs: Sequence[SamplingSpec], engines: Mapping[str, OcrEngine], shown: int) -> None:
        self._specs, self._engines, self._shown = specs, engines, shown
        self.lines: list[dict[str, Any]] = []
        self.examples: list[SampleImages] = []
        self._read: dict[int, list[ReadPicture]] = defaultdict(list)
        self._seconds: dict[int, list[float]] = defaultdict(list)
        self._calls: dict[int, int] = {}

    def add(self, prompt: Prompt, result: DrawingResult, pipeline: AnyText2Pipeline) -> None:
        """The pictures of a prompt. Without words to read they are not scored."""
        if not any(line.text.strip() for line in result.lines):
            return
        read = [[self._read_picture(np.array(image), result) for image in row.images] for row in result.rows]
        for number, (row, pictures) in enumerate(zip(result.rows, read, strict=True)):
            self._read[number] += pictures
            self._seconds[number] += [row.seconds] * len(pictures)
            self._calls[number] = row.unet_calls
        keys = [spec.key for spec in self._specs]
        for image in range(len(read[0])):
            of_rows = {key: pictures[image] for key, pictures in zip(keys, read, strict=True)}
            self.lines.append(_line_facts(prompt, image, of_rows))
            if len(self.examples) < self._shown:
                self.examples.append(self._example(prompt, image, result, of_rows, pipeline))

    def row(self, number: int, resamples: int, seed: int) -> PromptRow:
        read, seconds = self._read[number], self._seconds[number]
        return score_row(self._specs[number], read, seconds, self._calls[number], resamples, seed)

    def _read_picture(self, image: np.ndarray, result: DrawingResult) -> ReadPicture:
        written = [line for line in result.lines if line.text.strip()]
        polygons = [line.polygon for line in written]
        texts, languages = (tuple(getattr(line, name) for line in written) for name in ("text", "language"))
        read = {name: tuple(engine.recognize_lines(image, polygons)) for name, engine in self._engines.items()}
        return ReadPicture(texts, languages, read)

    def _example(
        self,
        prompt: Prompt,
        image: int,
        result: DrawingResult,
        of_rows: Mapping[str, ReadPicture],
        pipeline: AnyText2Pipeline,
    ) -> SampleImages:
        prepared = pipeline.prepare(prompt.request)
        engine = next(iter(self._engines))
        return SampleImages(
            name=prompt.name if len(result.images) == 1 else f"{prompt.name}-{image}",
            original=None if prepared.editing is None else prepared.editing.picture,
            hint=hint_to_image(prepared.sample.position, prepared.sample.glyph),
            sampled={key: np.array(row.images[image]) for key, row in _by_key(self._specs, result.rows).items()},
            caption=prompt.request.prompt,
            texts=next(iter(of_rows.values())).texts,
            recognized={key: picture.read[engine] for key, picture in of_rows.items()},
        )


def _by_key(specs: Sequence[SamplingSpec], rows: Sequence[DrawnRow]) -> dict[str, DrawnRow]:
    return {spec.key: row for spec, row in zip(specs, rows, strict=True)}


def _line_facts(prompt: Prompt, image: int, of_rows: Mapping[str, ReadPicture]) -> dict[str, Any]:
    """A picture's entry of summary.json."""
    texts = next(iter(of_rows.values())).texts
    lines = [
        {
            "text": text,
            "read": {key: {name: read[n] for name, read in row.read.items()} for key, row in of_rows.items()},
        }
        for n, text in enumerate(texts)
    ]
    return {"name": prompt.name, "image": image, "prompt": prompt.request.prompt, "lines": lines}
