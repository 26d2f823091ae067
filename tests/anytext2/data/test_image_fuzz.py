"""3,000 broken image files from a fixed seed: each is a valid sample or counted under a reason, and none takes long."""

from __future__ import annotations

import io
import itertools
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anytext2.core.batch import Record, TextLine
from anytext2.data.dataset import AnyWordDataset
from tests.helpers.fuzzing import CONFIG, FONTS, outcome_of

IMAGES = 3000


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
    save("jpeg 2000", color, "JPEG2000")
    save("avif", color, "AVIF")
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


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_mutated_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    line = TextLine("Open", np.array([(2, 2), (30, 2), (30, 20), (2, 20)], np.float32), "Latin", None)
    dataset = AnyWordDataset([Record(path, "a.jpg", "a shop", (line,))], CONFIG, 0, FONTS)
    outcomes: dict[str, Counter[str]] = {}
    for number, (kind, content) in enumerate(itertools.islice(_mutated_images(), IMAGES)):
        path.write_bytes(content)
        outcomes.setdefault(kind, Counter())[outcome_of(dataset, 0, number)] += 1
    assert set(outcomes["whole"]) == {""}, "every kind of file is read"
    assert set(outcomes["empty"]) == set(outcomes["text"]) == {"image corrupt"}
    assert set(outcomes["bomb"]) == {"image too large"}
    assert outcomes["truncated"]["image corrupt"] > 0.9 * outcomes["truncated"].total()
    assert outcomes["flipped"][""] > 300 and outcomes["flipped"]["image corrupt"] > 300
    reasons = set().union(*outcomes.values())
    named = {reason for reason in reasons if reason.startswith("image format not read: ")}
    kinds = {f"image of {kind} pixels" for kind in ("floating-point", "signed or 32-bit")}
    assert reasons - named <= {"", "image corrupt", "image too large", "image in Lab colours", *kinds}
