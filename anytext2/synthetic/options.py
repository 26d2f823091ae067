"""Options of drawn data sets. Imports nothing heavy: the command line shows the defaults."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anytext2.glyphs.fonts import DEFAULT_FONT_TABLE


@dataclass(frozen=True)
class SyntheticConfig:
    """Options of synthetic pictures.

    size: side of a picture in pixels.
    line_weights: relative frequencies of 1, 2, ... lines; empty: a default for the size. Lines that do not fit are
    omitted.
    chinese: fraction of the lines in Chinese; the others are Latin.
    default_font: fraction of the lines in the first font of the language, the one of the glyph page. The others use a
    random font of the language.
    latin_height, chinese_height: least height in pixels and greatest height as a fraction of the picture, of a Latin
    line (from the top of H to the bottom of g) or a Chinese character. The least height does not scale with the
    picture, because a latent cell is always 8 pixels.
    rotated: fraction of the lines that are rotated, by up to max_angle degrees.
    label: fraction of the lines on a plain label; lines without a readable colour always have one.
    outline, shadow: fractions of the pictures whose letters have an outline or a shadow. The caption says so, because
    a small model cannot guess it.
    image_format: 'png' or 'jpg'. fonts: path of the font table.
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
        """Probabilities of 1, 2, ... lines."""
        default = (0.50, 0.36, 0.10, 0.03, 0.01) if self.size < 192 else (0.28, 0.27, 0.20, 0.15, 0.10)
        weights = np.asarray(self.line_weights or default, dtype=np.float64)
        return weights / weights.sum()
