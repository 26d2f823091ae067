"""What was read in the pictures of free prompts: scores by script and by number of lines, and their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from distill.diffusion.sampling import SamplingSpec
from distill.evaluation.ocr import exact_match, ned
from distill.evaluation.score_table import align_columns, format_with_interval
from distill.evaluation.scores import Score, line_mean, scores_to_json

METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "ned": ned}
"""By name: (what was read, what should be read) -> 0 to 1."""


@dataclass(frozen=True)
class ReadPicture:
    """A picture's lines. languages: of each text. read: what each OCR engine read in them, by its option's name."""

    texts: tuple[str, ...]
    languages: tuple[str, ...]
    read: Mapping[str, tuple[str, ...]]

    def groups(self, line: int) -> tuple[str, str]:
        """The groups that a line is scored in: its script, and the number of lines in the picture."""
        count = len(self.texts)
        return self.languages[line], f"{count} lines" if count > 1 else "1 line"


@dataclass(frozen=True)
class PromptRow:
    """One way of sampling, scored.

    unet_calls, seconds: for a picture, the median. pictures: how many. scores: by OCR engine, then by group of lines,
    '' for all, then by metric.
    """

    spec: SamplingSpec
    unet_calls: int
    seconds: float
    pictures: int
    scores: dict[str, dict[str, dict[str, Score]]]

    def to_json(self) -> dict[str, Any]:
        spec = self.spec
        named = {name: getattr(spec, name) for name in ("key", "role", "sampler", "steps", "guidance")}
        engines = {
            engine: {**_plain(groups[""]), "groups": {name: _plain(scores) for name, scores in groups.items() if name}}
            for engine, groups in self.scores.items()
        }
        return {
            **named,
            "nfe": self.unet_calls,
            "seconds_per_image": self.seconds,
            "pictures": self.pictures,
            "read_by": engines,
        }

    def metrics(self) -> dict[str, float]:
        """For the tracker, by 'KEY/ENGINE/METRIC'."""
        values = {f"{self.spec.key}/seconds_per_image": self.seconds}
        for engine, groups in self.scores.items():
            for metric, score in groups[""].items():
                if score.value is not None:
                    values[f"{self.spec.key}/{engine}/{metric}"] = score.value
        return values


def score_row(
    spec: SamplingSpec,
    pictures: Sequence[ReadPicture],
    seconds: Sequence[float],
    unet_calls: int,
    resamples: int,
    seed: int,
) -> PromptRow:
    """Scores the pictures of one way of sampling. resamples, seed: of the bootstrap intervals, over pictures."""
    names = sorted({name for picture in pictures for n in range(len(picture.texts)) for name in picture.groups(n)})
    scores: dict[str, dict[str, dict[str, Score]]] = {}
    for engine in pictures[0].read:
        scores[engine] = {
            group: {metric: _mean(pictures, engine, group, metric, resamples, seed) for metric in METRICS}
            for group in ("", *names)
        }
    return PromptRow(spec, unet_calls, median(seconds), len(pictures), scores)


def _mean(pictures: Sequence[ReadPicture], engine: str, group: str, metric: str, resamples: int, seed: int) -> Score:
    measure = METRICS[metric]
    values = [
        [
            float(measure(read, text))
            for line, (read, text) in enumerate(zip(picture.read[engine], picture.texts, strict=True))
            if not group or group in picture.groups(line)
        ]
        for picture in pictures
    ]
    return line_mean(values, resamples, seed)


def _plain(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {"lines": scores["exact_match"].count, **scores_to_json(scores)}


def format_rows(rows: Sequence[PromptRow]) -> str:
    """A table for each OCR engine with a line for each row; the numbers of lines stand in the heads of the columns."""
    tables = []
    for engine, groups in rows[0].scores.items():
        counts = {name: scores["exact_match"].count for name, scores in groups.items()}
        head = ["row", "guidance", "UNet calls", "s/image", f"exact, {counts['']} lines (95 %)", "NED (95 %)"]
        head += [f"{name} ({counts[name]})" for name in groups if name]
        body = []
        for row in rows:
            spec, everything = row.spec, row.scores[engine][""]
            cells = [spec.label, "none" if spec.guidance == 1.0 else f"{spec.guidance:g}", str(row.unet_calls)]
            cells += [f"{row.seconds:.3f}", *(_interval_cell(everything[metric]) for metric in METRICS)]
            cells += [_cell(scores["exact_match"]) for name, scores in row.scores[engine].items() if name]
            body.append(cells)
        tables.append(f"read by {engine}:\n{align_columns(head, body)}")
    return "\n\n".join(tables)


def _interval_cell(score: Score) -> str:
    assert score.value is not None and score.interval is not None
    return format_with_interval(score.value, score.interval)


def _cell(score: Score) -> str:
    assert score.value is not None
    return f"{score.value:.3f}"
