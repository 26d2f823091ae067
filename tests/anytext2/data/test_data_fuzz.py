"""Ten thousand broken inputs: each is a valid sample or is counted under a reason, and none takes long.

7,000 annotations (6,400 items in 64 files, 600 whole files) and 3,000 image files, all from fixed seeds.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anytext2.core.batch import UNSET_COLOR, Record, Sample, TextLine, collate
from anytext2.data import json_stream
from anytext2.data.annotation_items import MAX_COORDINATE
from anytext2.data.annotations import LoadReport, load_records
from anytext2.data.dataset import AnyWordDataset, DatasetConfig, SampleError
from anytext2.glyphs.fonts import load_font_table

FONTS = load_font_table()
CONFIG = DatasetConfig(resolution=64, max_lines=2)
SECONDS = 5.0
FILES, ITEMS, WHOLE_FILES, IMAGES = 64, 100, 600, 3000

TEXTS = (
    "مرحبا بالعالم",
    "שלום",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\ud800",
    "ab\udfffc",
    "\u200b\u200b\u200b",
    "\u2800\u3164\uffa0",
    "e" + "\u0301" * 50,
    "a\nb\tc\r",
    "\0\x01\x7f",
    "*",
    ".",
    "|||||||||||||||||||||",
    "—" * 20,
    "欢迎光临",
    "가나다",
    "\U00012000\U0001f0a1",
    "\ufeff\u202ereversed",
    " " * 30 + "late",
    "𝔘𝔫𝔦",
    "ﷺ﷽",
)
LANGUAGES = ("Latin", "Chinese", "Chinese_tra", "Arabic", "Klingon", "", "_", "\udc80", "L" * 1000)
WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, math.nan, math.inf, -math.inf, 10**400, "", "x", "\ud800", "1", [], [[]], {},
    {"a": 1}, [1, 2, 3], [None], [[1, 2]], ["ab", "cd", "ef"], "@HUGE@", [[[[[[]]]]]],
)  # fmt: skip


# Items


def _wrong(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(WRONG))


def _item(number: int) -> dict[str, Any]:
    box = [[4, 6], [58, 6], [58, 30], [4, 30]]
    lines = [
        {"polygon": [[x, y + 32 * k] for x, y in box], "text": text, "language": "Latin", "color": [9, 99, 199]}
        for k, text in enumerate(("Open", "shop 7"))
    ]
    return {"img_name": f"{number}.png", "caption": "a shop", "wm_score": 0.2, "annotations": lines}


def _polygon(rng: random.Random) -> list[Any]:
    size = rng.choice([0.0, 1e-3, 1, 30, 500, 1e4, 9e5, 1e6, 1e7, 1e30, 1e308, 10**300, 10**330])
    corners: list[Any] = [
        [rng.choice([-1, 1]) * (int(size) if size > 1e300 else rng.uniform(0, size)) for _ in range(2)]
        for _ in range(rng.choice([1, 2, 3, 4, 4, 4, 5, 12, 200]))
    ]
    kind = rng.randrange(8)
    if kind == 0:
        corners = [corners[0]] * len(corners)
    elif kind == 1:
        corners = [[c[0], corners[0][1]] for c in corners]
    elif kind == 2:
        corners[rng.randrange(len(corners))] = rng.choice([[1], [1, 2, 3], [1, "2"], [True, None], 7, [math.nan, 1]])
    elif kind == 3:
        corners[rng.randrange(len(corners))][rng.randrange(2)] = _wrong(rng)
    return corners


def _set_top(item: dict[str, Any], rng: random.Random) -> None:
    field, value = rng.choice(list(item)), _wrong(rng)
    if field == "img_name" and isinstance(value, str) and value.isalnum():
        value += item[field]  # so that names tell the items of a file apart
    item[field] = value


def _set_annotation(item: dict[str, Any], rng: random.Random) -> None:
    line = rng.choice(item["annotations"])
    line[rng.choice([*line, "valid"])] = _wrong(rng)


def _drop(item: dict[str, Any], rng: random.Random) -> None:
    target = rng.choice([item, *item["annotations"]])
    del target[rng.choice(list(target))]


def _move(item: dict[str, Any], rng: random.Random) -> None:
    rng.choice(item["annotations"])["polygon"] = _polygon(rng)


def _rewrite(item: dict[str, Any], rng: random.Random) -> None:
    line = rng.choice(item["annotations"])
    line["text"] = rng.choice(TEXTS)
    if rng.random() < 0.5:
        line["language"] = rng.choice(LANGUAGES)


def _rename(item: dict[str, Any], rng: random.Random) -> None:
    name = item["img_name"]
    item["img_name"] = rng.choice(
        ["/" + name, "../" + name, "../" * 9 + name, "a/../../" + name, "./" + name, name + "\0", "absent" + name,
         name + "/x", "n" * 5000 + name, "é" + name, "\udcff" + name, "..", "//", name + "/.."]
    )  # fmt: skip


def _recaption(item: dict[str, Any], rng: random.Random) -> None:
    item["caption"] = rng.choice([*TEXTS, "* " * 300, "many. " * 500, "." * 400, "word " * 2000])


def _crowd(item: dict[str, Any], rng: random.Random) -> None:
    item["annotations"] *= rng.randint(2, 8)
    item["annotations"].append(_wrong(rng))


MUTATIONS: tuple[Callable[[dict[str, Any], random.Random], None], ...] = (
    *(_set_top, _set_annotation, _drop, _crowd, _rename, _recaption),
    *(_move, _rewrite) * 3,
)


def _mutated(number: int, rng: random.Random) -> Any:
    if rng.random() < 0.03:
        return _wrong(rng)
    item = _item(number)
    for mutate in rng.sample(MUTATIONS, rng.randint(1, 3)):
        try:
            mutate(item, rng)
        except (KeyError, TypeError, IndexError, AttributeError):
            break  # an earlier mutation took away what this one changes
    if rng.random() < 0.0005:
        item["annotations"] = [{**_item(0)["annotations"][0], "text": "long" * 25_000}]
    return item


def _as_json(content: Any, ascii_only: bool) -> str:
    return json.dumps(content, ensure_ascii=ascii_only).replace('"@HUGE@"', "9" * 5000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures 0.png, 1.png, ... of different sizes."""
    path, rng = tmp_path_factory.mktemp("fuzz"), np.random.default_rng(0)
    for number in range(ITEMS):
        size = [(64, 64), (1, 1), (33, 64), (200, 3)][0 if number % 4 else number // 4 % 4]
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path / f"{number}.png")
    return path


# What is asserted of whatever comes out


def _assert_valid(sample: Sample) -> None:
    batch = collate([sample]).normalized()
    side, lines = CONFIG.resolution, CONFIG.max_lines
    shapes = {
        "image": (1, 3, side, side),
        "masked_image": (1, 3, side, side),
        "glyph": (1, 1, side, side),
        "position": (1, lines, side, side),
        "glyph_line": (1, lines, 80, 512),
        "font_hint": (1, 1, side, side),
        "inverse_mask": (1, 1, side, side),
        "color": (1, lines, 3),
    }
    for name, shape in shapes.items():
        value = getattr(batch, name)
        assert value.shape == shape, name
        if name not in ("image", "masked_image", "color"):
            assert value.dtype == torch.uint8 and int(value.max()) <= 1, name
    for picture in (batch.image, batch.masked_image):
        assert float(picture.min()) >= -1 and float(picture.max()) <= 1  # which NaN is not
    color = sample.color.numpy()
    assert ((color == UNSET_COLOR) | ((color >= 0) & (color <= 255))).all()
    assert 1 <= sample.n_lines <= lines and all(len(text) <= CONFIG.max_chars for text in sample.texts)
    for polygon in sample.polygons:
        assert np.isfinite(polygon).all() and np.abs(polygon).max() <= 2 * side
    "".join([sample.image_caption, *sample.texts, *sample.languages]).encode("utf-8")


def _outcome(dataset: AnyWordDataset, index: int, epoch: int) -> str:
    """'' for a valid sample, else the reason why there is none."""
    start = time.process_time()
    try:
        sample = dataset.sample(index, epoch)
    except SampleError as error:
        assert "\n" not in str(error)
        return error.reason
    finally:
        assert time.process_time() - start < SECONDS, dataset.records[index]
    _assert_valid(sample)
    return ""


def _assert_accounted(items: list[Any], records: list[Record], report: LoadReport) -> None:
    """Every item is a record or counted; every annotation of a record is a line or counted."""
    lost = sum(count for reason, count in report.skipped.items() if reason.startswith("pictures: "))
    assert report.pictures + lost == len(items) and len(records) == report.pictures
    by_name = {
        item["img_name"]: item for item in items if isinstance(item, dict) and isinstance(item.get("img_name"), str)
    }
    annotations = sum(len(by_name[record.name].get("annotations") or []) for record in records)
    unused = sum(count for reason, count in report.skipped.items() if reason.startswith("lines: "))
    assert report.lines + unused == annotations
    assert report.lines == sum(len(record.lines) for record in records)
    ignored = sum(count for reason, count in report.skipped.items() if reason.endswith("(ignored by the loss)"))
    assert ignored == sum(len(record.ignored_polygons) for record in records)
    for record in records:
        for polygon in (*(line.polygon for line in record.lines), *record.ignored_polygons):
            assert polygon.dtype == np.float32 and np.abs(polygon).max() <= MAX_COORDINATE


def test_mutated_items(folder: Path) -> None:
    rng, path = random.Random(1), folder / "data.json"
    skipped: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for number in range(FILES):
        items = [_mutated(n, rng) for n in range(ITEMS)]
        text = _as_json({"data_root": ".", "data_list": items}, ascii_only=True)
        path.write_text(text, encoding="utf-8")
        records, report = load_records(path, max_faulty=1.0)
        _assert_accounted(items, list(records), report)
        str(report).encode("utf-8")
        skipped.update(report.skipped)
        dataset = AnyWordDataset(records, CONFIG, number, FONTS)
        outcomes.update(_outcome(dataset, index, number) for index in range(len(dataset)))
    assert outcomes[""] > FILES * ITEMS // 2 and set(outcomes) <= {"", "image missing", "image corrupt"}
    assert {
        "pictures: not an object",
        "pictures: name outside data_root",
        "pictures: faulty img_name",
        "pictures: faulty annotations",
        "lines: not an object",
        "lines: faulty polygon",
        "lines: polygon with an area below one pixel",
        "lines: text with unpaired surrogates (ignored by the loss)",
        "lines: faulty language (ignored by the loss)",
    } <= set(skipped)


def _mutated_bytes(rng: random.Random) -> bytes:
    items = [_item(n) if rng.random() < 0.7 else _mutated(n, rng) for n in range(3)]
    fields = [
        ("data_root", "."),
        ("data_list", items),
        ("data_list" if rng.random() < 0.1 else "extra", [1, {"a": []}]),
    ]
    rng.shuffle(fields)
    text = "{" + ", ".join(f'"{name}": {_as_json(value, True)}' for name, value in fields) + "}"
    content = bytearray(text.encode())
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        at = rng.randrange(len(content))
        kind = rng.randrange(6)
        if kind == 0:
            del content[at:]
            break
        if kind == 1:
            content[at] = rng.randrange(256)
        elif kind == 2:
            del content[at : at + rng.randint(1, 40)]
        elif kind == 3:
            content[at:at] = content[at : at + rng.randint(1, 200)]
        elif kind == 4:
            content[at:at] = rng.choice([b"[", b"{", b'"', b"\\", b"\0", b"\xff", b"[" * 5000, b'{"a":' * 3000, b"\n"])
        else:
            content[:0] = rng.choice([b"\xef\xbb\xbf", b" \n", b"\xff\xfe"])
    return bytes(content) or b" "


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content.decode("utf-8-sig"), parse_int=float)
    except (ValueError, RecursionError):
        return False
    return True


def test_mutated_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, path = random.Random(2), folder / "file.json"
    loaded = refused = 0
    for number in range(WHOLE_FILES):
        monkeypatch.setattr(json_stream, "CHUNK_CHARACTERS", rng.choice([16, 100, 1 << 18]))
        content = _mutated_bytes(rng)
        path.write_bytes(content)
        start = time.process_time()
        try:
            records, report = load_records(path, max_faulty=1.0)
        except ValueError as error:
            message = str(error)
            assert message.startswith(str(path)) and "\n" not in message
            assert not _is_json(content) or not ("not JSON" in message or "cannot read" in message), message
            refused += 1
        else:
            assert _is_json(content)
            dataset = AnyWordDataset(records, CONFIG, number, FONTS)
            outcomes = {_outcome(dataset, index, 0) for index in range(report.pictures)}
            assert outcomes <= {"", "image missing", "image corrupt"}
            loaded += 1
        assert time.process_time() - start < SECONDS
    assert loaded > 100 and refused > 200


@pytest.mark.parametrize(
    ("text", "polygon"),
    [
        ("\u200b\u200b\u200b", [(30, 2), (34, 2), (34, 60), (30, 60)]),  # no ink and no width, in a tall box
        ("Open", [(-9e5, 10), (9e5, 10), (9e5, 6e5), (-9e5, 6e5)]),  # letters as high as ten thousand pictures
        ("Open", [(-1e6, -1e6), (-9e5, -1e6), (-9e5, -9e5)]),
        ("\u2800", [(-50, -60), (110, -60), (110, 120), (-50, 120)]),
    ],
)
def test_lines_that_cannot_be_drawn_as_they_are(folder: Path, text: str, polygon: list[tuple[float, float]]) -> None:
    line = TextLine(text, np.array(polygon, np.float32), "Latin", None)
    dataset = AnyWordDataset([Record(folder / "0.png", "0.png", "", (line,))], CONFIG, 0, FONTS)
    assert [_outcome(dataset, 0, epoch) for epoch in range(4)] == [""] * 4


# Pictures


def _pictures() -> dict[str, bytes]:
    """Files of all kinds that occur, small, with content that compresses badly."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    color, gray = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    rgba = Image.fromarray(np.dstack([pixels, pixels[..., :1]]))
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 8
    files: dict[str, bytes] = {}

    def save(name: str, image: Image.Image, kind: str, **options: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[name] = buffer.getvalue()

    save("jpeg", color, "JPEG")
    save("progressive jpeg", color, "JPEG", progressive=True)
    save("cmyk jpeg", color.convert("CMYK"), "JPEG")
    save("exif jpeg", color, "JPEG", exif=turned)
    save("gray jpeg", gray, "JPEG")
    save("png", color, "PNG")
    save("16 bit png", deep, "PNG")
    save("palette png", color.convert("P"), "PNG", transparency=3)
    save("bilevel png", gray.convert("1"), "PNG")
    save("transparent png", rgba, "PNG")
    save("animated gif", color.convert("P"), "GIF", save_all=True, append_images=[gray.convert("P")])
    save("animated webp", rgba, "WEBP", save_all=True, append_images=[color])
    save("webp", color, "WEBP", lossless=True)
    save("bmp", color, "BMP")
    save("tiff", deep, "TIFF")
    save("packed tiff", color, "TIFF", compression="tiff_lzw")
    save("ppm", color, "PPM")
    save("one pixel", color.crop((0, 0, 1, 1)), "PNG")
    return files


def _bomb() -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _mutated_images() -> Iterator[tuple[str, bytes]]:
    """(what it is, content) without end: first the files as they are, then truncated, then with flipped bytes."""
    files, rng = _pictures(), random.Random(4)
    yield from (("whole", content) for content in files.values())
    yield from [("empty", b""), ("text", b"this is no picture\n" * 9), ("bomb", _bomb())]
    for content in files.values():
        yield from (("truncated", content[:end]) for end in range(1, len(content), max(1, len(content) // 50)))
    for content in itertools.cycle(files.values()):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            # Headers are where a byte changes most.
            at = rng.randrange(min(len(changed), 64) if rng.random() < 0.5 else len(changed))
            changed[at] = rng.randrange(256)
        yield "flipped", bytes(changed)


@pytest.mark.filterwarnings("ignore")
def test_mutated_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    line = TextLine("Open", np.array([(2, 2), (30, 2), (30, 20), (2, 20)], np.float32), "Latin", None)
    dataset = AnyWordDataset([Record(path, "a.jpg", "a shop", (line,))], CONFIG, 0, FONTS)
    outcomes: dict[str, Counter[str]] = {}
    for number, (kind, content) in enumerate(itertools.islice(_mutated_images(), IMAGES)):
        path.write_bytes(content)
        outcomes.setdefault(kind, Counter())[_outcome(dataset, 0, number)] += 1
    assert set(outcomes["whole"]) == {""}, "every kind of file is read"
    assert set(outcomes["empty"]) == set(outcomes["text"]) == {"image corrupt"}
    assert set(outcomes["bomb"]) == {"image too large"}
    assert outcomes["truncated"]["image corrupt"] > 0.9 * outcomes["truncated"].total()
    assert outcomes["flipped"][""] > 300 and outcomes["flipped"]["image corrupt"] > 300
    reasons = set().union(*outcomes.values())
    assert reasons <= {"", "image corrupt", "image too large", "image of floating-point pixels"}
