"""Record + image file -> Sample. What is random in a sample depends on (seed, epoch, index) only.

Follows AnyText2's training data (arXiv:2411.15245): captions, glyphs, masks, font hints, colours, editing mode.
Records are never changed, polygons are scaled with the picture, and every map has the picture's own size.

Shape legend: L lines (padded to max_lines), H/W pixels, g the glyph scale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from anytext2 import render
from anytext2.annotations import PLACEHOLDER
from anytext2.batch import GLYPH_LINE_SIZE, UNSET_COLOR, Record, Sample, TextLine
from anytext2.fonts import Font, FontTable
from anytext2.randomness import numpy_rng

TEXT_PHRASES = ("Text says ", "Image with words ", "The picture reads ", "Captions are ", "Texts are ", "Text: ")
_MAX_CAPTION_CHARACTERS = 500


class SampleError(Exception):
    """This picture cannot be used. `reason` is the same for all pictures with this fault, so that it can be counted."""

    def __init__(self, reason: str, where: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class DatasetConfig:
    """What a sample looks like. Probabilities are per sample, or per line where they concern lines.

    resolution: side of the picture in pixels; max_lines, max_chars: more lines are left to the inverse mask, longer
    texts are cut; glyph_scale: glyph page pixels per picture pixel; ink_threshold: least coverage of a glyph page
    pixel that counts as ink; mask_img_prob: editing mode; mask_pos_prob: the position is told; font_hint_prob,
    font_hint_area (share of the line kept), font_hint_randaug: the hint at the font; color_prob: the colour is told;
    rand_font: the glyph page is drawn with any font of the language; wm_threshold, cap_watermark: what
    `load_records` does with the watermark score; max_caption_words: longer captions keep their first sentence and
    random others.
    """

    resolution: int = 512
    max_lines: int = 5
    max_chars: int = 20
    glyph_scale: int = 1
    ink_threshold: float = 0.1
    mask_img_prob: float = 0.5
    mask_pos_prob: float = 1.0
    font_hint_prob: float = 0.8
    font_hint_area: tuple[float, float] = (0.7, 1.0)
    font_hint_randaug: bool = True
    color_prob: float = 1.0
    rand_font: bool = True
    wm_threshold: float = 1.0
    cap_watermark: bool = False
    max_caption_words: int = 128

    def __post_init__(self) -> None:
        if self.resolution < 64 or self.resolution % 8:
            raise ValueError(f"resolution: {self.resolution} must be a multiple of 8, at least 64")
        for name in ("max_lines", "max_chars", "glyph_scale", "max_caption_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("mask_img_prob", "mask_pos_prob", "font_hint_prob", "color_prob", "ink_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be in [0, 1]")
        least, most = self.font_hint_area
        if not 0 <= least <= most <= 1:
            raise ValueError(f"font_hint_area: {self.font_hint_area} must be two rising numbers in [0, 1]")


class AnyWordDataset:
    """Annotated pictures as samples; holds no state besides its arguments."""

    def __init__(self, records: Sequence[Record], config: DatasetConfig, seed: int, fonts: FontTable) -> None:
        self.records = records
        self.config = config
        self.seed = seed
        self.fonts = fonts

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, epoch: int) -> Sample:
        """The sample `index` as it is in `epoch`.

        Raises SampleError when the picture is missing or cannot be decoded; that is the caller's to count.
        """
        record = self.records[index]
        side = self.config.resolution
        pixels = load_image(record.image_path)
        record = scaled(record, side / pixels.shape[1], side / pixels.shape[0])
        return self._build(record, resized(pixels, side), _Chance(self.seed, epoch, index))

    def _build(self, record: Record, pixels: np.ndarray, chance: _Chance) -> Sample:
        config, size = self.config, pixels.shape[:2]
        lines, left_out = _chosen_lines(record.lines, config.max_lines, chance)
        lines = [replace(line, text=line.text[: config.max_chars]) for line in lines] or [_no_text(size)]
        editing = chance.rng("editing").random() < config.mask_img_prob
        position = self._positions(lines, size, chance)
        inverse = np.zeros(size, np.uint8) if editing else render.filled([*record.ignored_polygons, *left_out], size)
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)
        return Sample(
            index=chance.index,
            name=record.name,
            image=image,
            masked_image=_masked(image, position) if editing else torch.full_like(image, -1.0),
            glyph=torch.from_numpy(self._glyph(lines, size, chance))[None],
            position=torch.from_numpy(position),
            glyph_line=torch.from_numpy(self._glyph_lines(lines)),
            font_hint=torch.from_numpy(self._font_hint(lines, pixels, chance))[None],
            color=torch.from_numpy(self._colors(lines, chance)),
            inverse_mask=torch.from_numpy(inverse)[None],
            n_lines=len(lines),
            editing=bool(editing),
            image_caption=image_caption(record.caption, config.max_caption_words, chance.rng("caption")),
            text_caption=text_caption(len(lines), chance.rng("phrase")),
            texts=tuple(line.text for line in lines),
            languages=tuple(line.language for line in lines),
            polygons=tuple(line.polygon for line in lines),
        )

    def _glyph(self, lines: Sequence[TextLine], size: tuple[int, int], chance: _Chance) -> np.ndarray:
        """Union of the lines' ink: uint8 [H*g, W*g]."""
        scale = self.config.glyph_scale
        page = np.zeros((size[0] * scale, size[1] * scale), np.uint8)
        for number, line in enumerate(lines):
            font = self._page_font(line, chance.rng(f"font {number}"))
            page |= render.glyph_page(line.text, line.polygon * scale, page.shape, font, self.config.ink_threshold)
        return page

    def _page_font(self, line: TextLine, rng: np.random.Generator) -> Font:
        """The language's first font that has the characters, or any of them that also keeps their case."""
        fonts = self.fonts.fonts_for(line.language)
        small_letters = line.text != line.text.upper()
        able = [font for font in fonts if not font.missing(line.text) and not (font.capitals and small_letters)]
        if not able:
            return glyph_line_font(line.text, line.language, self.fonts)
        return able[int(rng.integers(len(able)))] if self.config.rand_font else able[0]

    def _glyph_lines(self, lines: Sequence[TextLine]) -> np.ndarray:
        maps = np.zeros((self.config.max_lines, *GLYPH_LINE_SIZE), np.uint8)
        for number, line in enumerate(lines):
            maps[number] = render.glyph_line(line.text, glyph_line_font(line.text, line.language, self.fonts))
        return maps

    def _positions(self, lines: Sequence[TextLine], size: tuple[int, int], chance: _Chance) -> np.ndarray:
        maps = np.zeros((self.config.max_lines, *size), np.uint8)
        for number, line in enumerate(lines):
            rng = chance.rng(f"position {number}")
            if rng.random() < self.config.mask_pos_prob:
                maps[number] = render.position_mask(line.polygon, size, rng)
        return maps

    def _font_hint(self, lines: Sequence[TextLine], pixels: np.ndarray, chance: _Chance) -> np.ndarray:
        config = self.config
        page = np.zeros(pixels.shape[:2], np.uint8)
        for number, line in enumerate(lines):
            rng = chance.rng(f"font hint {number}")
            if line.text.strip() and rng.random() < config.font_hint_prob:
                page |= render.font_hint(pixels, line.polygon, config.font_hint_area, config.font_hint_randaug, rng)
        return page

    def _colors(self, lines: Sequence[TextLine], chance: _Chance) -> np.ndarray:
        colors = np.full((self.config.max_lines, 3), UNSET_COLOR, np.float32)
        told = chance.rng("color").random(len(lines)) < self.config.color_prob
        for number, line in enumerate(lines):
            if line.color is not None and told[number]:
                colors[number] = line.color
        return colors


def load_image(path: Path) -> np.ndarray:
    """A picture as stored (no EXIF turn: annotations were made without it): uint8 [H, W, 3], red-green-blue.

    Raises SampleError when it is missing, truncated or not a picture.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise SampleError("image missing", str(path)) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's ways to say "corrupt"
        raise SampleError("image corrupt", f"{path} ({error})") from error


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """The picture as side x side, uint8."""
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return pixels
    # Averaging over areas is the only one of the two that does not alias when shrinking.
    method = cv2.INTER_AREA if height * width > side * side else cv2.INTER_LINEAR
    return cv2.resize(pixels, (side, side), interpolation=method)


def scaled(record: Record, x: float, y: float) -> Record:
    """The record with all polygons scaled as the picture is."""
    factor = np.array([x, y], np.float32)
    lines = tuple(replace(line, polygon=line.polygon * factor) for line in record.lines)
    return replace(record, lines=lines, ignored_polygons=tuple(p * factor for p in record.ignored_polygons))


def image_caption(caption: str, max_words: int, rng: np.random.Generator) -> str:
    """The caption with its final ' . ', cut to 500 characters; a longer one than max_words keeps its first sentence
    and as many of the others, in random order, as there is room for."""
    caption = (caption + ". ")[:_MAX_CAPTION_CHARACTERS]
    if len(caption.split()) <= max_words:
        return caption
    first, *others = [sentence.split() for sentence in caption.split(".")]
    words = first[:max_words]
    for number in rng.permutation(len(others)):
        if len(words) >= max_words:
            break
        if others[number]:
            words = [*words[:-1], words[-1] + ".", *others[number]] if words else others[number]
    return " ".join(words[:max_words]) + ". "


def text_caption(n_lines: int, rng: np.random.Generator) -> str:
    """One placeholder a line, each between spaces (only so does the tokeniser keep it whole): 'Text says * , * . '."""
    phrase = TEXT_PHRASES[int(rng.integers(len(TEXT_PHRASES)))]
    return phrase + " , ".join([PLACEHOLDER] * n_lines) + " . "


def glyph_line_font(text: str, language: str, fonts: FontTable) -> Font:
    """The font of glyph lines: the default one, or one of the language's that has characters which that lacks."""
    candidates = (fonts.default, *fonts.fonts_for(language))
    return next((font for font in candidates if not font.missing(text)), fonts.default)


def missing_glyphs(records: Iterable[Record], fonts: FontTable) -> Counter[str]:
    """How often each character occurs in the records that no font of the table can draw for its line."""
    missing: Counter[str] = Counter()
    for record in records:
        for line in record.lines:
            font = glyph_line_font(line.text, line.language, fonts)
            missing.update({char: line.text.count(char) for char in font.missing(line.text)})
    return missing


@dataclass(frozen=True)
class _Chance:
    """The random generators of one sample: one for each purpose, so that no option shifts another one's numbers."""

    seed: int
    epoch: int
    index: int

    def rng(self, purpose: str) -> np.random.Generator:
        return numpy_rng(self.seed, self.epoch, self.index, f"dataset {purpose}")


def _chosen_lines(
    lines: Sequence[TextLine], most: int, chance: _Chance
) -> tuple[list[TextLine], tuple[np.ndarray, ...]]:
    """At most `most` lines, chosen and ordered at random when there are more, and the polygons of the others."""
    if len(lines) <= most:
        return list(lines), ()
    order = chance.rng("lines").permutation(len(lines))
    return [lines[i] for i in order[:most]], tuple(lines[i].polygon for i in order[most:])


def _no_text(size: tuple[int, int]) -> TextLine:
    """What stands for the text of a picture without any: a blank line in a corner."""
    corner = np.array([(10, 10), (100, 10), (100, 100), (10, 100)], np.float32)
    return TextLine(" ", corner * np.array([size[1], size[0]], np.float32) / render.FULL_SIZE, "Latin", None)


def _masked(image: torch.Tensor, position: np.ndarray) -> torch.Tensor:
    """The image with -1 where any line is: [3, H, W]."""
    hidden = torch.from_numpy(position.max(0)).bool()
    return image.masked_fill(hidden, -1.0)
