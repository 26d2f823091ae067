"""Writes datasets in the AnyWord annotation format, drawn with the fonts of fonts/.

Picture `index` of a dataset depends on (seed, index) only: not on the number of pictures, workers or the machine.
The caption names the background and the objects on it, never the words, so that both contexts carry information.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anytext2.core.batch import TextLine
from anytext2.core.rng import numpy_rng
from anytext2.glyphs.fonts import DEFAULT_FONT_TABLE, REFERENCE_SIZE, Font, FontTable, draw_text, load_font_table
from anytext2.synthetic.backgrounds import PALETTE, Color, draw_background, random_color
from anytext2.synthetic.words import chinese_text, latin_text

_CONTRAST = 80.0  # least distance in brightness (0..255) between a text and what is under it
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # brightness of red, green and blue (ITU-R BT.601)
_TRIES = 10  # words tried for one line, places tried for one word


@dataclass(frozen=True)
class SyntheticConfig:
    """How the pictures look. Sizes are in pixels.

    line_weights: how often a picture has 1, 2, ... lines (empty: chosen by the picture size); a line that finds no
    place is left out. latin_height: height from the top of a capital to the foot of a g; chinese_height: height of a
    character; both are the range's least value in pixels (a latent cell stays 8 pixels whatever the picture is) and
    its greatest as a fraction of the picture. default_font: fraction of the lines drawn in the font table's first font
    of the language, whose letters lie where the glyph page has them; the rest takes any font of the language.
    outline, shadow: fractions of the pictures whose letters all have a rim or a shade, which the caption then says:
    what no condition tells, a model can only guess, and small models guess stroke by stroke.
    """

    size: int = 128
    line_weights: tuple[float, ...] = ()
    chinese: float = 0.4
    default_font: float = 0.85
    latin_height: tuple[int, float] = (40, 0.45)
    chinese_height: tuple[int, float] = (30, 0.44)
    rotated: float = 0.4
    max_angle: float = 16.0
    label: float = 0.15
    outline: float = 0.06
    shadow: float = 0.06
    image_format: str = "png"
    fonts: str = str(DEFAULT_FONT_TABLE)

    def __post_init__(self) -> None:
        if self.size < 96:
            raise ValueError(f"size: {self.size} pixels are too few for a line of text; use 96 or more")
        if not 0 <= self.default_font <= 1:
            raise ValueError(f"default_font: {self.default_font} is not a fraction; use 0 to 1")
        if min(self.outline, self.shadow) < 0 or self.outline + self.shadow > 1:
            raise ValueError(f"outline: {self.outline}, shadow: {self.shadow}: fractions whose sum is at most 1")
        for name, (least, most) in (("latin_height", self.latin_height), ("chinese_height", self.chinese_height)):
            if not 8 <= least <= most * self.size:
                top = int(most * self.size)
                raise ValueError(f"{name}: letters of {least} pixels and more do not fit; use 8 to {top} at this size")
        if self.image_format not in ("png", "jpg"):
            raise ValueError(f"image_format: {self.image_format!r} is not known; use 'png' or 'jpg'")
        if self.line_weights and (min(self.line_weights) < 0 or sum(self.line_weights) <= 0):
            raise ValueError(f"line_weights: {self.line_weights} must not be negative and not all zero")

    @property
    def line_probabilities(self) -> np.ndarray:
        default = (0.50, 0.36, 0.10, 0.03, 0.01) if self.size < 192 else (0.28, 0.27, 0.20, 0.15, 0.10)
        weights = np.asarray(self.line_weights or default, dtype=np.float64)
        return weights / weights.sum()


@dataclass(frozen=True)
class SyntheticPicture:
    """One drawn picture: image uint8 [size, size, 3] red-green-blue, its caption and its lines (image pixels)."""

    image: np.ndarray
    caption: str
    lines: tuple[TextLine, ...]
    kind: str


@dataclass
class _Page:
    """The picture in the making: what is drawn, how its letters look, and the upright boxes that are taken."""

    image: np.ndarray
    letters: str
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def is_free(self, box: tuple[float, float, float, float]) -> bool:
        return all(
            box[2] <= left or box[0] >= right or box[3] <= top or box[1] >= bottom
            for left, top, right, bottom in self.taken
        )


@dataclass(frozen=True)
class _Placed:
    """A word with its ink (float32 [h, w] in 0..1, upright), its centre and its angle in degrees."""

    text: str
    language: str
    ink: np.ndarray
    center: tuple[float, float]
    angle: float
    scale: float  # picture pixels for each ink pixel

    def polygon(self, margin: float) -> np.ndarray:
        """Corners [4, 2] of the ink's box: top left, top right, bottom right, bottom left in reading direction."""
        half_h, half_w = (np.array(self.ink.shape) * self.scale / 2 + margin).tolist()
        corners = np.array([(-half_w, -half_h), (half_w, -half_h), (half_w, half_h), (-half_w, half_h)])
        return corners @ _rotation(self.angle).T + np.array(self.center)


def draw_picture(seed: int, index: int, config: SyntheticConfig) -> SyntheticPicture:
    """Draws picture `index` of the dataset `seed`."""
    rng = numpy_rng(seed, 0, index, "synthetic")
    background = draw_background(rng, config.size)
    page = _Page(background.image, _letters(rng, config))
    n_lines = 1 + int(rng.choice(len(config.line_probabilities), p=config.line_probabilities))
    lines = [line for _ in range(n_lines) if (line := _add_line(page, rng, config)) is not None]
    caption = f"{_article(background.description)} {background.description}"
    if rng.random() < 0.5:
        caption = f"{_MEDIA[int(rng.integers(len(_MEDIA)))]} with {caption}"
    if page.labels:
        caption += " and " + " and ".join(f"{_article(name)} {name} label" for name in page.labels)
    if page.letters != _PLAIN:
        caption += f", {page.letters} letters"
    return SyntheticPicture(page.image, caption, tuple(lines), background.kind)


_MEDIA = ("a poster", "a picture", "a sign", "a card")


_PLAIN, _OUTLINED, _SHADED = "plain", "outlined", "shaded"


def _letters(rng: np.random.Generator, config: SyntheticConfig) -> str:
    drawn = rng.random()
    if drawn < config.outline:
        return _OUTLINED
    return _SHADED if drawn < config.outline + config.shadow else _PLAIN


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _add_line(page: _Page, rng: np.random.Generator, config: SyntheticConfig) -> TextLine | None:
    table = _font_table(config.fonts)
    # Chosen once: trying again in another language would favour the one whose words are shorter.
    language = "Chinese" if rng.random() < config.chinese else "Latin"
    fonts = table.fonts_for(language)
    if rng.random() < config.default_font:
        fonts = fonts[:1]
    for _ in range(_TRIES):
        font = fonts[int(rng.integers(len(fonts)))]
        text = chinese_text(rng) if language == "Chinese" else latin_text(rng, font)
        placed = _place(page, rng, config, text, language, font)
        if placed is not None:
            return _ink_line(page, rng, config, placed)
    return None


def _place(
    page: _Page, rng: np.random.Generator, config: SyntheticConfig, text: str, language: str, font: Font
) -> _Placed | None:
    """Chooses size, angle and a free place for `text`; None when it does not fit."""
    least, most = config.chinese_height if language == "Chinese" else config.latin_height
    reference = font.ink_box("国" if language == "Chinese" else "Hg").height
    angle = float(rng.uniform(-config.max_angle, config.max_angle)) if rng.random() < config.rotated else 0.0
    room = config.size - 10
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    box = font.ink_box(text)
    # Largest height for which the turned box stays inside the picture.
    widest = room / max(box.width * cos + box.height * sin, box.width * sin + box.height * cos) * reference
    top = min(most * config.size, widest)
    if top < least:
        return None
    height = least + (top - least) * rng.random() ** 1.3
    supersampling = 2 if angle else 1
    size = max(1, round(REFERENCE_SIZE * height / reference))
    ink = np.asarray(draw_text(text, font, size * supersampling), dtype=np.float32) / 255
    width, height = ink.shape[1] / supersampling + 6, ink.shape[0] / supersampling + 6
    half_x, half_y = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    if 2 * max(half_x, half_y) > config.size - 2:
        return None
    for _ in range(_TRIES):
        x = float(rng.uniform(half_x + 1, config.size - half_x - 1))
        y = float(rng.uniform(half_y + 1, config.size - half_y - 1))
        if not angle:  # upright ink falls on whole pixels: as sharp as the font's rasteriser made it
            x, y = math.floor(x) + (ink.shape[1] % 2) / 2, math.floor(y) + (ink.shape[0] % 2) / 2
        frame = (x - half_x, y - half_y, x + half_x, y + half_y)
        if page.is_free(frame):
            page.taken.append(frame)
            return _Placed(text, language, ink, (x, y), angle, 1 / supersampling)
    return None


def _ink_line(page: _Page, rng: np.random.Generator, config: SyntheticConfig, placed: _Placed) -> TextLine:
    """Draws the placed word (label, shadow, outline, fill) in a colour that can be read there."""
    color = _readable_color(rng, *_brightness_under(page.image, placed))
    if color is None or rng.random() < config.label:
        name, ground = random_color(rng)
        page.labels.append(name)
        cv2.fillConvexPoly(page.image, placed.polygon(3.0).round().astype(np.int32), ground, cv2.LINE_AA)
        color = _readable_color(rng, _luma(ground), _luma(ground))
        assert color is not None, "black or white can be read on any plain ground"
    alpha, left, top = _turned_ink(placed, config.size)
    window = page.image[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    if page.letters == _SHADED:
        depth = max(1, round(alpha.shape[0] / 24))
        shade = cv2.GaussianBlur(np.roll(alpha, (depth, depth), (0, 1)), (3, 3), 0)
        _compose(window, 0.6 * shade, (0, 0, 0) if _luma(color) > 110 else (255, 255, 255))
    if page.letters == _OUTLINED:
        rim = cv2.GaussianBlur(cv2.dilate(alpha, np.ones((3, 3), np.uint8)), (3, 3), 0)
        _compose(window, rim, (16, 16, 16) if _luma(color) > 110 else (250, 250, 250))
    _compose(window, alpha, color)
    return TextLine(placed.text, placed.polygon(1.5).astype(np.float32), placed.language, color)


def _brightness_under(image: np.ndarray, placed: _Placed) -> tuple[float, float]:
    """Brightness of the darkest and brightest places around the line (2 % of outliers aside)."""
    polygon = placed.polygon(2.0)
    left, top = np.maximum(np.floor(polygon.min(0)).astype(int), 0)
    right, bottom = np.ceil(polygon.max(0)).astype(int)
    region = image[top:bottom:2, left:right:2].reshape(-1, 3) @ _LUMA
    darkest, brightest = np.percentile(region, (2, 98))
    return float(darkest), float(brightest)


def _readable_color(rng: np.random.Generator, darkest: float, brightest: float) -> Color | None:
    """A colour whose brightness keeps its distance from everything between darkest and brightest, or None."""
    refused: tuple[str, ...] = ()
    while len(refused) < len(PALETTE):
        name, color = random_color(rng, exclude=refused)
        if _luma(color) < darkest - _CONTRAST or _luma(color) > brightest + _CONTRAST:
            return color
        refused += (name,)
    return None


def _turned_ink(placed: _Placed, size: int) -> tuple[np.ndarray, int, int]:
    """Ink [h, w] in 0..1 in the picture's pixels and the picture position (left, top) of its first pixel."""
    ink_h, ink_w = placed.ink.shape
    polygon = placed.polygon(3.0)
    left, top = np.maximum(np.floor(polygon.min(0)).astype(int), 0).tolist()
    right, bottom = np.minimum(np.ceil(polygon.max(0)).astype(int), size).tolist()
    turn = _rotation(placed.angle) * placed.scale
    # Pixel centres: ink pixel i lies at i + 0.5, hence the halves.
    shift = np.array(placed.center) - turn @ np.array([ink_w / 2, ink_h / 2]) - (left, top)
    shift += turn @ np.array([0.5, 0.5]) - 0.5
    matrix = np.concatenate([turn, shift[:, None]], axis=1)
    return cv2.warpAffine(placed.ink, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR), left, top


def _compose(window: np.ndarray, alpha: np.ndarray, color: Color) -> None:
    weight = alpha[..., None]
    window[:] = (window + (np.asarray(color, np.float32) - window) * weight + 0.5).astype(np.uint8)


def _rotation(degrees: float) -> np.ndarray:
    """2 x 2 rotation in picture coordinates (y grows downwards)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


def _luma(color: Color) -> float:
    return float(_LUMA @ np.asarray(color, np.float32))


@lru_cache
def _font_table(path: str) -> FontTable:
    return load_font_table(path)


def write_dataset(
    out: str | Path, count: int, config: SyntheticConfig, seed: int, first_index: int = 0, workers: int = 1
) -> Counter[str]:
    """Writes `count` pictures to out/imgs and their annotations to out/data.json (last, and whole or not at all).

    Returns counts: pictures, lines, and lines by language and pictures by kind of background.
    Raises ValueError for a count below 1.
    """
    if count < 1 or workers < 1:
        raise ValueError(f"count: {count}, workers: {workers}: both must be at least 1")
    out = Path(out)
    (out / "imgs").mkdir(parents=True, exist_ok=True)
    draw = partial(_write_picture, out=out, config=config, seed=seed)
    counts: Counter[str] = Counter()
    items = []
    for item, kind in _mapped(draw, range(first_index, first_index + count), workers):
        counts.update(["pictures", f"background {kind}"])
        for annotation in item["annotations"]:
            counts.update(["lines", annotation["language"]])
        items.append(item)
    partial_file = out / "data.json.partial"
    partial_file.write_text(_to_json(items), encoding="utf-8")
    os.replace(partial_file, out / "data.json")
    return counts


def _mapped(function: Any, indices: Sequence[int], workers: int) -> Iterator[tuple[dict[str, Any], str]]:
    if workers == 1:
        yield from map(function, indices)
        return
    with multiprocessing.get_context("spawn").Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.imap(function, indices, chunksize=64)


def _write_picture(index: int, out: Path, config: SyntheticConfig, seed: int) -> tuple[dict[str, Any], str]:
    picture = draw_picture(seed, index, config)
    name = f"{index:07d}.{config.image_format}"
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if config.image_format == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    if not cv2.imwrite(str(out / "imgs" / name), picture.image[..., ::-1], options):
        raise OSError(f"{out / 'imgs' / name}: cannot write the picture")
    annotations = [
        {
            "polygon": [[round(float(x), 1), round(float(y), 1)] for x, y in line.polygon],
            "text": line.text,
            "language": line.language,
            "color": list(line.color or ()),
            "valid": True,
        }
        for line in picture.lines
    ]
    return {"img_name": name, "caption": picture.caption, "wm_score": 0.0, "annotations": annotations}, picture.kind


def _to_json(items: list[dict[str, Any]]) -> str:
    rows = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    return f'{{"data_root": "imgs", "data_list": [\n{rows}\n]}}\n'
