"""Draws one synthetic picture: background, lines of text and caption.

A picture depends on (seed, index) only. The caption describes the background and the objects on it, never the words,
so that the image caption and the text caption carry different information.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from anytext2.core.batch import TextLine
from anytext2.core.rng import numpy_rng
from anytext2.glyphs.fonts import REFERENCE_SIZE, Font, FontTable, draw_text, load_font_table
from anytext2.synthetic.backgrounds import PALETTE, Color, draw_background, random_color
from anytext2.synthetic.options import SyntheticConfig
from anytext2.synthetic.words import chinese_text, latin_text

_CONTRAST = 80.0  # least difference in brightness (0..255) between a text and the picture under it
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # brightness of red, green and blue (ITU-R BT.601)
_TRIES = 10  # words that are tried for one line, positions that are tried for one word


@dataclass(frozen=True)
class SyntheticPicture:
    """One drawn picture: uint8 [size, size, 3] red-green-blue, its caption, lines and kind of background."""

    image: np.ndarray
    caption: str
    lines: tuple[TextLine, ...]
    kind: str


@dataclass
class _Canvas:
    """A picture that is being drawn.

    letter_style: plain, outlined or shaded. occupied: bounding boxes (left, top, right, bottom) of the lines so far.
    labels: names of the colours of the labels so far.
    """

    image: np.ndarray
    letter_style: str
    occupied: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def is_free(self, box: tuple[float, float, float, float]) -> bool:
        """Whether the box overlaps with no occupied one."""
        return all(
            box[2] <= left or box[0] >= right or box[3] <= top or box[1] >= bottom
            for left, top, right, bottom in self.occupied
        )


@dataclass(frozen=True)
class _PlacedWord:
    """A word, its ink (float32 [h, w] in 0..1, upright), the centre (x, y) and the angle in degrees of its box."""

    text: str
    language: str
    ink: np.ndarray
    center: tuple[float, float]
    angle: float
    scale: float  # picture pixels for each ink pixel

    def polygon(self, margin: float) -> np.ndarray:
        """Corners [4, 2] of the ink's box with a margin in pixels: top left, top right, bottom right, bottom left."""
        half_h, half_w = (np.array(self.ink.shape) * self.scale / 2 + margin).tolist()
        corners = np.array([(-half_w, -half_h), (half_w, -half_h), (half_w, half_h), (-half_w, half_h)])
        return corners @ _rotation(self.angle).T + np.array(self.center)


def draw_picture(seed: int, index: int, config: SyntheticConfig) -> SyntheticPicture:
    """Draws picture `index` of the dataset with this seed."""
    rng = numpy_rng(seed, 0, index, "synthetic")
    background = draw_background(rng, config.size)
    canvas = _Canvas(background.image, _random_letter_style(rng, config))
    n_lines = 1 + int(rng.choice(len(config.line_probabilities), p=config.line_probabilities))
    lines = [line for _ in range(n_lines) if (line := _add_line(canvas, rng, config)) is not None]
    caption = f"{_article(background.description)} {background.description}"
    if rng.random() < 0.5:
        caption = f"{_MEDIA[int(rng.integers(len(_MEDIA)))]} with {caption}"
    if canvas.labels:
        caption += " and " + " and ".join(f"{_article(name)} {name} label" for name in canvas.labels)
    if canvas.letter_style != _PLAIN:
        caption += f", {canvas.letter_style} letters"
    return SyntheticPicture(canvas.image, caption, tuple(lines), background.kind)


_MEDIA = ("a poster", "a picture", "a sign", "a card")
_PLAIN, _OUTLINED, _SHADED = "plain", "outlined", "shaded"  # letter styles, as the caption names them


def _random_letter_style(rng: np.random.Generator, config: SyntheticConfig) -> str:
    number = rng.random()
    if number < config.outline:
        return _OUTLINED
    return _SHADED if number < config.outline + config.shadow else _PLAIN


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _add_line(canvas: _Canvas, rng: np.random.Generator, config: SyntheticConfig) -> TextLine | None:
    """Draws one random line; None if no word fits."""
    table = _font_table(config.fonts)
    # The language is drawn once: a new draw for each try would favour the language with the shorter words.
    language = "Chinese" if rng.random() < config.chinese else "Latin"
    fonts = table.fonts_for(language)
    if rng.random() < config.default_font:
        fonts = fonts[:1]
    for _ in range(_TRIES):
        font = fonts[int(rng.integers(len(fonts)))]
        text = chinese_text(rng) if language == "Chinese" else latin_text(rng, font)
        word = _place_word(canvas, rng, config, text, language, font)
        if word is not None:
            return _draw_word(canvas, rng, config, word)
    return None


def _place_word(
    canvas: _Canvas, rng: np.random.Generator, config: SyntheticConfig, text: str, language: str, font: Font
) -> _PlacedWord | None:
    """Draws a random size, angle and free position for `text`; None if it does not fit."""
    least, most = config.chinese_height if language == "Chinese" else config.latin_height
    reference = font.ink_box("国" if language == "Chinese" else "Hg").height
    angle = float(rng.uniform(-config.max_angle, config.max_angle)) if rng.random() < config.rotated else 0.0
    room = config.size - 10
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    box = font.ink_box(text)
    # Greatest height for which the rotated box fits into the picture.
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
        if not angle:  # upright ink is aligned to whole pixels, so that it stays sharp
            x, y = math.floor(x) + (ink.shape[1] % 2) / 2, math.floor(y) + (ink.shape[0] % 2) / 2
        bounds = (x - half_x, y - half_y, x + half_x, y + half_y)
        if canvas.is_free(bounds):
            canvas.occupied.append(bounds)
            return _PlacedWord(text, language, ink, (x, y), angle, 1 / supersampling)
    return None


def _draw_word(canvas: _Canvas, rng: np.random.Generator, config: SyntheticConfig, word: _PlacedWord) -> TextLine:
    """Draws the word (label, shadow, outline, fill) in a random colour that is readable at its position."""
    color = _readable_color(rng, *_brightness_range(canvas.image, word))
    if color is None or rng.random() < config.label:
        name, label_color = random_color(rng)
        canvas.labels.append(name)
        cv2.fillConvexPoly(canvas.image, word.polygon(3.0).round().astype(np.int32), label_color, cv2.LINE_AA)
        color = _readable_color(rng, _luma(label_color), _luma(label_color))
        assert color is not None, "black or white is readable on any plain label"
    alpha, left, top = _rotate_ink(word, config.size)
    window = canvas.image[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    if canvas.letter_style == _SHADED:
        depth = max(1, round(alpha.shape[0] / 24))
        shadow = cv2.GaussianBlur(np.roll(alpha, (depth, depth), (0, 1)), (3, 3), 0)
        _composite(window, 0.6 * shadow, (0, 0, 0) if _luma(color) > 110 else (255, 255, 255))
    if canvas.letter_style == _OUTLINED:
        outline = cv2.GaussianBlur(cv2.dilate(alpha, np.ones((3, 3), np.uint8)), (3, 3), 0)
        _composite(window, outline, (16, 16, 16) if _luma(color) > 110 else (250, 250, 250))
    _composite(window, alpha, color)
    return TextLine(word.text, word.polygon(1.5).astype(np.float32), word.language, color)


def _brightness_range(image: np.ndarray, word: _PlacedWord) -> tuple[float, float]:
    """The 2nd and 98th percentile of the brightness (0..255) under the word."""
    polygon = word.polygon(2.0)
    left, top = np.maximum(np.floor(polygon.min(0)).astype(int), 0)
    right, bottom = np.ceil(polygon.max(0)).astype(int)
    region = image[top:bottom:2, left:right:2].reshape(-1, 3) @ _LUMA
    darkest, brightest = np.percentile(region, (2, 98))
    return float(darkest), float(brightest)


def _readable_color(rng: np.random.Generator, darkest: float, brightest: float) -> Color | None:
    """A random colour that is by _CONTRAST darker than `darkest` or brighter than `brightest`; None without one."""
    rejected: tuple[str, ...] = ()
    while len(rejected) < len(PALETTE):
        name, color = random_color(rng, exclude=rejected)
        if _luma(color) < darkest - _CONTRAST or _luma(color) > brightest + _CONTRAST:
            return color
        rejected += (name,)
    return None


def _rotate_ink(word: _PlacedWord, size: int) -> tuple[np.ndarray, int, int]:
    """The rotated ink [h, w] in 0..1, in pixels of the picture, and left and top of its first pixel."""
    ink_h, ink_w = word.ink.shape
    polygon = word.polygon(3.0)
    left, top = np.maximum(np.floor(polygon.min(0)).astype(int), 0).tolist()
    right, bottom = np.minimum(np.ceil(polygon.max(0)).astype(int), size).tolist()
    rotation = _rotation(word.angle) * word.scale
    # The centre of ink pixel i is at i + 0.5, hence the halves.
    shift = np.array(word.center) - rotation @ np.array([ink_w / 2, ink_h / 2]) - (left, top)
    shift += rotation @ np.array([0.5, 0.5]) - 0.5
    matrix = np.concatenate([rotation, shift[:, None]], axis=1)
    return cv2.warpAffine(word.ink, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR), left, top


def _composite(window: np.ndarray, alpha: np.ndarray, color: Color) -> None:
    """Blends a colour into `window` uint8 [h, w, 3] in place. alpha: [h, w] in 0..1."""
    weight = alpha[..., None]
    window[:] = (window + (np.asarray(color, np.float32) - window) * weight + 0.5).astype(np.uint8)


def _rotation(degrees: float) -> np.ndarray:
    """The 2 x 2 rotation matrix, clockwise, because y grows downwards."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


def _luma(color: Color) -> float:
    return float(_LUMA @ np.asarray(color, np.float32))


@lru_cache
def _font_table(path: str) -> FontTable:
    return load_font_table(path)
