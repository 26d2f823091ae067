"""A good data set changed in 45 ways that people's files have: each is used rightly, counted, or refused.

docs/DATA.md has the same table; a test compares them.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anytext2.data.options import DatasetConfig
from distill.checks.dataset_check import check_source
from distill.checks.dataset_report import format_report, reasons_unusable
from tests.helpers.paths import ROOT

WIDTH, HEIGHT = 200, 160
TEXTS = ("Harbour", "Straße", "Phở bò", "営業中", "欢迎光临", "OPEN 24")
LANGUAGES = ("Chinese", "Latin")
USED, COUNTED, REFUSED = "used", "counted", "refused"
Data = dict[str, Any]


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def good_data() -> Data:
    """Six pictures with twelve lines of several scripts."""
    items = []
    for n, text in enumerate(TEXTS):
        lines = [
            {
                "polygon": box(10 + n, 12, 150 + n, 52),
                "text": text,
                "language": "Latin" if text.isascii() else "Chinese",
            },
            {
                "polygon": box(20, 90 + n, 120, 130 + n),
                "text": f"Line {n}",
                "language": "Latin",
                "color": [200, 20, 10],
            },
        ]
        items.append({"img_name": f"picture {n}.png", "caption": f"a wall {n}", "annotations": lines})
    return {"data_root": ".", "data_list": items}


def picture(n: int) -> Image.Image:
    pixels = np.random.default_rng(n).integers(60, 200, (HEIGHT, WIDTH, 3), np.uint8)
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class Mutation:
    """What is changed, what becomes of it, and what the report or verdict says."""

    change: Callable[[Data, Path], bytes | None]
    outcome: str
    says: str = ""


def lines(change: Callable[[dict[str, Any]], Any]) -> Callable[[Data, Path], None]:
    def apply(data: Data, folder: Path) -> None:
        for item in data["data_list"]:
            for line in item["annotations"]:
                change(line)

    return apply


def first_line(**values: Any) -> Callable[[Data, Path], None]:
    return lambda data, folder: data["data_list"][0]["annotations"][0].update(values)


def items(change: Callable[[dict[str, Any]], Any]) -> Callable[[Data, Path], None]:
    def apply(data: Data, folder: Path) -> None:
        for item in data["data_list"]:
            change(item)

    return apply


def corners(change: Callable[[float, float], list[float]]) -> Callable[[Data, Path], None]:
    return lines(lambda line: line.update(polygon=[change(x, y) for x, y in line["polygon"]]))


def texts(change: Callable[[str], str]) -> Callable[[Data, Path], None]:
    return lines(lambda line: line.update(text=change(line["text"])))


def pictures(save: Callable[[Image.Image, Path], Any]) -> Callable[[Data, Path], None]:
    def apply(data: Data, folder: Path) -> None:
        for n, item in enumerate(data["data_list"]):
            save(picture(n), folder / item["img_name"])

    return apply


def turned_pictures(data: Data, folder: Path) -> None:
    """Stored on their side with EXIF orientation 6, annotated upright in a portrait picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for n, item in enumerate(data["data_list"]):
        upright = picture(n).transpose(Image.Transpose.ROTATE_90)  # 160 x 200 as a viewer shows it
        upright.transpose(Image.Transpose.ROTATE_90).save(folder / item["img_name"], exif=exif)
        for line in item["annotations"]:
            line["polygon"] = [[x * 0.7, y + 62] for x, y in line["polygon"]]


def renamed_files(rename: Callable[[str], str]) -> Callable[[Data, Path], None]:
    def apply(data: Data, folder: Path) -> None:
        for item in data["data_list"]:
            (folder / item["img_name"]).rename(folder / rename(item["img_name"]))

    return apply


def in_folder(data: Data, folder: Path) -> None:
    (folder / "street").mkdir()
    for item in data["data_list"]:
        (folder / item["img_name"]).rename(folder / "street" / item["img_name"])
        item["img_name"] = "street\\" + item["img_name"]


def accented(data: Data, folder: Path) -> None:
    for n, item in enumerate(data["data_list"]):
        (folder / item["img_name"]).rename(folder / unicodedata.normalize("NFD", f"café {n}.png"))
        item["img_name"] = unicodedata.normalize("NFC", f"café {n}.png")


def cut_picture(data: Data, folder: Path) -> None:
    file = folder / data["data_list"][0]["img_name"]
    file.write_bytes(file.read_bytes()[:2000])


def encoded(codec: str, mark: bytes = b"") -> Callable[[Data, Path], bytes]:
    def apply(data: Data, folder: Path) -> bytes:
        return mark + json.dumps(data, ensure_ascii=False).encode(codec, "replace")

    return apply


def shares(x: float, y: float) -> list[float]:
    return [x / WIDTH, y / HEIGHT]


def doubled(data: Data, folder: Path) -> None:
    for item in data["data_list"]:
        item["annotations"] *= 2


def one_copy(data: Data, folder: Path) -> None:
    data["data_list"][0]["annotations"] *= 2


MUTATIONS: dict[str, Mutation] = {
    # units and places
    "coordinates as shares": Mutation(corners(shares), REFUSED, "look like shares of the picture"),
    "coordinates in percent": Mutation(
        corners(lambda x, y: [100 * v for v in shares(x, y)]), REFUSED, "look like percent of the picture"
    ),
    "coordinates ten times too large": Mutation(corners(lambda x, y: [10 * x, 10 * y]), REFUSED, "outside"),
    "boxes right of the picture": Mutation(corners(lambda x, y: [x + WIDTH, y]), REFUSED, "outside"),
    "x and y swapped": Mutation(corners(lambda x, y: [y, x]), REFUSED, "look swapped"),
    "boxes as [x, y, width, height]": Mutation(
        lines(lambda line: line.update(polygon=[10, 20, 100, 30])), REFUSED, "write its four corners"
    ),
    "boxes as two corners": Mutation(
        lines(lambda line: line.update(polygon=line["polygon"][::2])), REFUSED, "opposite corners"
    ),
    "one box partly outside": Mutation(first_line(polygon=box(-20, 12, 150, 52)), COUNTED, "partly outside"),
    "coordinates with fractions": Mutation(corners(lambda x, y: [x + 0.4, y + 0.3]), USED),
    "not-a-number in a corner": Mutation(first_line(polygon=[[float("nan"), 1], [9, 1], [9, 9]]), REFUSED, "polygon"),
    # order
    "corners counter-clockwise": Mutation(lines(lambda line: line["polygon"].reverse()), COUNTED, "counter-clockwise"),
    "corners from another one on": Mutation(
        lines(lambda line: line.update(polygon=line["polygon"][2:] + line["polygon"][:2])), USED
    ),
    "crossing edges": Mutation(
        lines(lambda line: line.update(polygon=[line["polygon"][i] for i in (0, 2, 1, 3)])), COUNTED, "convex hull"
    ),
    "lines in another order": Mutation(items(lambda item: item["annotations"].reverse()), USED),
    "fields in another order": Mutation(lambda data, folder: json.dumps(dict(reversed(data.items()))).encode(), USED),
    # encodings of the annotation file
    "UTF-8 with a mark": Mutation(encoded("utf-8", b"\xef\xbb\xbf"), USED),
    "UTF-16": Mutation(encoded("utf-16"), REFUSED, "save the file as UTF-8"),
    "GBK": Mutation(encoded("gb18030"), REFUSED, "save the file as UTF-8"),
    # names
    "backslashes in names": Mutation(in_folder, COUNTED, "another spelling of its name"),
    "names composed otherwise": Mutation(accented, COUNTED, "another spelling of its name"),
    "names in capitals": Mutation(renamed_files(str.upper), REFUSED, "nearest there: 'PICTURE 0.PNG'"),
    "another folder": Mutation(lambda data, folder: data.update(data_root="nowhere"), REFUSED, "data_root"),
    "no data_root": Mutation(lambda data, folder: data.pop("data_root"), USED),
    "names that climb out": Mutation(
        items(lambda item: item.update(img_name="../" + item["img_name"])), REFUSED, "not below data_root"
    ),
    # forms of text
    "texts in NFD": Mutation(texts(lambda text: unicodedata.normalize("NFD", text)), COUNTED, "NFC"),
    "blanks around texts": Mutation(texts(lambda text: f"  {text}\t "), COUNTED, "white space"),
    "zero-width characters": Mutation(texts(lambda text: f"\u200b{text}\ufeff"), COUNTED, "invisible characters"),
    "a text of two rows": Mutation(first_line(text="OPEN\nNOW"), COUNTED, "several rows"),
    "### for what cannot be read": Mutation(first_line(text="###"), COUNTED, "such as ###"),
    "an empty text": Mutation(first_line(text="  "), COUNTED, "empty text"),
    "emoji alone": Mutation(texts(lambda text: "🎉"), REFUSED, "glyph"),
    "texts that are numbers": Mutation(lines(lambda line: line.update(text=24)), REFUSED, "text"),
    "texts of a wrong encoding": Mutation(texts(lambda text: "\ufffd\ufffd"), REFUSED, "wrong encoding"),
    "a text half from right to left": Mutation(first_line(text="Cafe مرحبا"), COUNTED, "right-to-left"),
    "a language without a font": Mutation(texts(lambda text: "مرحبا"), REFUSED, "add a font for its language"),
    # fields
    "no language": Mutation(lines(lambda line: line.pop("language")), COUNTED, "inferred from the script"),
    "colours above 255": Mutation(lines(lambda line: line.update(color=[300, 0, 0])), REFUSED, "color"),
    "annotations renamed": Mutation(
        items(lambda item: item.update(labels=item.pop("annotations"))), REFUSED, "annotations"
    ),
    "all lines invalid": Mutation(lines(lambda line: line.update(valid=False)), REFUSED, "marked invalid"),
    # duplicates
    "every box twice": Mutation(doubled, REFUSED, "same box"),
    "one item's boxes twice": Mutation(one_copy, REFUSED, "same box"),
    # pictures
    "turned by EXIF": Mutation(turned_pictures, REFUSED, "data.options.exif=apply"),
    "AVIF named .png": Mutation(pictures(lambda image, file: image.save(file, format="AVIF")), COUNTED, "AVIF"),
    "CMYK JPEG": Mutation(
        pictures(lambda image, file: image.convert("CMYK").save(file, format="JPEG")), COUNTED, "CMYK"
    ),
    "a cut picture": Mutation(cut_picture, REFUSED, "image corrupt"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_used_counted_or_refused(name: str, tmp_path: Path) -> None:
    mutation, data = MUTATIONS[name], good_data()
    pictures(lambda image, file: image.save(file))(data, tmp_path)
    content = mutation.change(data, tmp_path)
    path = tmp_path / "data.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(data).encode())
    check = check_source(path, DatasetConfig(resolution=128, ink_threshold=0.3))
    why_not, report = "; ".join(reasons_unusable(check, 0.05, 0.0)), format_report(check)
    assert bool(why_not) == (mutation.outcome == REFUSED), why_not or report
    assert mutation.says in (why_not or report), why_not or report
    if mutation.outcome == USED:
        unchanged = good_report(tmp_path)
        assert report.splitlines()[1:] == unchanged.splitlines()[1:]


def good_report(folder: Path) -> str:
    path = folder / "good.json"
    path.write_text(json.dumps(good_data()))
    return format_report(check_source(path, DatasetConfig(resolution=128, ink_threshold=0.3)))


@pytest.mark.heavy
def test_the_data_set_is_good_without_a_mutation(tmp_path: Path) -> None:
    pictures(lambda image, file: image.save(file))(good_data(), tmp_path)
    (tmp_path / "data.json").write_text(json.dumps(good_data()))
    check = check_source(tmp_path / "data.json", DatasetConfig(resolution=128, ink_threshold=0.3))
    assert not reasons_unusable(check, 0.05, 0.0) and check.readable == 6 and check.lines == 12


def test_the_outcomes_are_documented() -> None:
    rows = ["| change | outcome | what is said |", "|---|---|---|"]
    rows += [f"| {name} | {one.outcome} | {one.says} |" for name, one in MUTATIONS.items()]
    table = "\n".join(rows)
    assert table in (ROOT / "docs" / "DATA.md").read_text(encoding="utf-8"), f"docs/DATA.md needs:\n{table}"
