"""A small annotation file with one fault of each kind, and the pictures that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 96
BOX = [[8, 30], [88, 30], [88, 60], [8, 60]]


def line(text: str, polygon: list[list[int]] = BOX, language: str = "Latin", **fields: Any) -> dict[str, Any]:
    return {"text": text, "polygon": polygon, "language": language, **fields}


def item(name: str, *lines: dict[str, Any], caption: str = "a wall") -> dict[str, Any]:
    return {"img_name": name, "caption": caption, "annotations": list(lines)}


def write(folder: Path, items: list[dict[str, Any]], name: str = "data.json") -> Path:
    """Writes the annotation file, and a picture for every item whose name does not say that it is missing."""
    (folder / "imgs").mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for entry in items:
        path = folder / "imgs" / entry["img_name"]
        if "missing" not in path.name:
            Image.fromarray(noise).save(path)
        if "truncated" in path.name:
            path.write_bytes(path.read_bytes()[:2000])
    annotations = folder / name
    annotations.write_text(json.dumps({"data_root": "imgs", "data_list": items}), encoding="utf-8")
    return annotations


def upright(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def sound_items(count: int = 6) -> list[dict[str, Any]]:
    return [item(f"sound_{n}.png", line(f"Word {n}", color=[10, 10, 10])) for n in range(count)]


def faulty_items() -> list[dict[str, Any]]:
    """18 items: what tests/distill/checks/test_dataset_check.py expects of them is written there."""
    return [
        *sound_items(8),
        item("missing.png", line("gone")),
        item("truncated.png", line("half")),
        item("truncated_too.jpg", line("half")),
        item("partly.png", line("edge", upright(60, 10, 120, 30)), line("fine")),
        item("wholly.png", line("away", upright(200, 10, 260, 30)), line("fine")),
        item("touching.png", line("border", upright(0, 0, SIDE, 30))),
        item(
            "emoji.png",
            line("Hi\U0001f600\U0001f600", color=[250, 240, 255]),
            line("ok\U0001f601", upright(8, 64, 88, 90)),
        ),
        item("crowd.png", *(line(f"row {n}", upright(8, 4 + 30 * n, 88, 30 + 30 * n)) for n in range(3))),
        item("long.png", line("a text of more than twenty characters")),
        item("empty.png"),
    ]
