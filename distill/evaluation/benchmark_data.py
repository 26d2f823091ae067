"""The annotation files of AnyText-benchmark, and their prompts as samples without anything random.

Shape legend: H/W pixels, g the glyph scale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from anytext2.core.batch import Record, Sample, TextLine
from anytext2.data.annotation_items import SkippedError, parse_item
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import FontTable, load_font_table
from anytext2.glyphs.render import position_mask
from distill.config.schema import Recipe

REQUIRED_SETS = {"Chinese": "wukong_word/test1k.json", "English": "laion_word/test1k.json"}
LONG_CAPTION_SETS = {
    "Chinese, long captions": "wukong_word/test1k_long.json",
    "English, long captions": "laion_word/test1k_long.json",
    "long captions": "test1k_long.json",
}
SEED, MAX_LINES = 100, 20


def find_annotation_files(folder: Path) -> dict[str, Path]:
    """The benchmark's annotation files by the name of the set. Raises ValueError where a required one is missing."""
    missing = [file for file in REQUIRED_SETS.values() if not (folder / file).is_file()]
    if missing:
        raise ValueError(
            f"--benchmark {folder}: {' and '.join(missing)} missing; unpack AnyText-benchmark (linked from AnyText's "
            "README) there, each file beside the folder imgs/ of its pictures"
        )
    return {
        name: folder / file
        for name, file in {**REQUIRED_SETS, **LONG_CAPTION_SETS}.items()
        if (folder / file).is_file()
    }


def load_prompts(file: Path, recipe: Recipe, first: int = 0, count: int | None = None) -> AnyWordDataset:
    """`count` prompts of a set, from index `first` on, without random fonts, colours or hints.

    Pictures are searched in the file's data_root and in imgs/ beside the file. Raises ValueError in one line.
    """
    own = recipe.data.options
    options = DatasetConfig(
        resolution=own.resolution,
        max_lines=MAX_LINES,
        max_chars=own.max_chars,
        glyph_scale=own.glyph_scale,
        ink_threshold=own.ink_threshold,
        mask_img_prob=0.0,
        font_hint_prob=0.0,
        color_prob=0.0,
        rand_font=False,
        like_reference=own.like_reference,
    )
    records = _records(file)
    if not 0 <= first < len(records):
        raise ValueError(f"--first {first}: {file} has {len(records)} prompts, 0 to {len(records) - 1}")
    last = len(records) if count is None else min(len(records), first + count)
    chosen = records[first:last]
    if not any(record.image_path.is_file() for record in chosen):
        raise ValueError(f"{file}: no picture of it is there; put them into {file.parent / 'imgs'}")
    return AnyWordDataset(chosen, options, SEED, FontTable(load_font_table().default, {}))


def _records(file: Path) -> list[Record]:
    """All prompts of a file. `language`, which the authors' script does not need, is guessed where it is missing."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        root, items = Path(content["data_root"]), list(content["data_list"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not an annotation file with data_root and data_list ({error!r})") from error
    records = []
    for number, item in enumerate(items):
        for annotation in item.get("annotations", ()) if isinstance(item, dict) else ():
            if isinstance(annotation, dict):
                annotation.setdefault("language", _language(str(annotation.get("text", ""))))
        try:
            found = parse_item(item, 1.0, False)
        except SkippedError as error:
            raise ValueError(f"{file}: data_list[{number}]: {error}") from error
        lines = [line for line, _ in found.lines()]
        ignored = [line.polygon for line in lines if isinstance(line, SkippedError) and line.polygon is not None]
        places = (file.parent / root / found.name, file.parent / "imgs" / Path(found.name).name)
        place = next((path for path in places if path.is_file()), places[1])
        written = tuple(line for line in lines if isinstance(line, TextLine))
        records.append(Record(place, found.name, found.caption, written, tuple(ignored)))
    return records


def _language(text: str) -> str:
    return "Chinese" if any("\u3400" <= character <= "\u9fff" for character in text) else "Latin"


def benchmark_conditions(sample: Sample) -> Sample:
    """The sample with the conditions of the protocol: whole polygons as positions, the glyph page as font hint."""
    size = (int(sample.position.shape[1]), int(sample.position.shape[2]))
    page = F.interpolate(sample.glyph[None].float(), size, mode="area")[0]
    position = torch.zeros_like(sample.position)
    for line, polygon in enumerate(sample.polygons):
        position[line] = torch.from_numpy(position_mask(polygon, size))
    return replace(sample, font_hint=(page >= 0.5).to(torch.uint8), position=position)


def unique_file_stems(names: Sequence[str]) -> list[str]:
    """A unique file stem for each prompt, from its picture's name with _ for characters that are unsafe there."""
    taken: set[str] = set()
    found = []
    for number, name in enumerate(names):
        stem = re.sub(r"[^\w\-]", "_", Path(name).stem)[:100] or "picture"
        stem = f"{stem}-{number}" if stem in taken else stem
        taken.add(stem)
        found.append(stem)
    return found
