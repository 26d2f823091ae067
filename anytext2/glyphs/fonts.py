"""Font files, the font table (language -> fonts), text metrics and text drawing.

A font reports the characters that it has no glyph for, so that callers can count them instead of drawing boxes.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image, ImageDraw, ImageFont
from yaml import YAMLError

from anytext2.core.resources import resource

DEFAULT_FONT_TABLE = resource("fonts/fonts.yaml")

REFERENCE_SIZE = 50
"""Size in pixels per em at which texts are measured, as in AnyText2. Other sizes are scaled from it."""

MAX_FONT_SIZE = 30_000
"""Greatest size in pixels per em. A character without ink fits at any size, but FreeType's limit is 65535."""

JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: they draw nothing, but change the letters beside them in some scripts."""

_NONCHARACTER = "\U0010fffe"  # no font has it, so that its glyph is the font's "missing glyph" box


@dataclass(frozen=True)
class TextBox:
    """Bounding box of a text's ink in pixels, relative to the drawing origin (left end, ascender line)."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def scaled(self, factor: float) -> TextBox:
        """The box with all coordinates multiplied by `factor`."""
        return TextBox(self.left * factor, self.top * factor, self.right * factor, self.bottom * factor)


@dataclass(frozen=True)
class Font:
    """A font file. Loaded faces and metrics are cached per process.

    capitals: its lower-case letters look like capitals. script: a script typeface, illegible in all capitals.
    """

    path: Path
    capitals: bool = False
    script: bool = False

    def face(self, size: int) -> ImageFont.FreeTypeFont:
        """The loaded font at `size` pixels per em."""
        return _face(self.path, size)

    def ink_box(self, text: str) -> TextBox:
        """Bounding box of the ink of `text` at REFERENCE_SIZE."""
        return _reference_box(self.path, text)

    def size_that_fits(self, text: str, width: float, height: float) -> int:
        """Largest size, at least 1, at which the ink of `text` fits into width x height pixels.

        It assumes that ink grows linearly with the size. Hinting can add a pixel.
        """
        box = self.ink_box(text)
        ratio = min(width / max(box.width, 1.0), height / max(box.height, 1.0), MAX_FONT_SIZE / REFERENCE_SIZE)
        return max(1, math.floor(REFERENCE_SIZE * ratio))

    def missing_characters(self, text: str) -> tuple[str, ...]:
        """The distinct characters of `text` for which the font draws nothing, in order. Joiners are not meant to be."""
        return tuple(dict.fromkeys(char for char in text if char not in JOINERS and not _has_glyph(self.path, char)))

    def supported(self, text: str, joiners: bool = False) -> str:
        """`text` without the characters for which the font draws nothing. joiners: keep those, for a shaping layout."""
        return "".join(char for char in text if _has_glyph(self.path, char) or (joiners and char in JOINERS))


@dataclass(frozen=True, eq=False)
class FontTable:
    """The fonts of each language, and a default font for languages that are not listed.

    It is compared and hashed by identity, so that functions of a table can be cached.
    """

    default: Font
    languages: dict[str, tuple[Font, ...]]

    def fonts_for(self, language: str) -> tuple[Font, ...]:
        """All fonts of `language`, best first. 'Chinese_sim' and similar names fall back to 'Chinese'."""
        fonts = self.languages.get(language) or self.languages.get(language.split("_")[0])
        return fonts or (self.default,)


def load_font_table(path: str | Path = DEFAULT_FONT_TABLE) -> FontTable:
    """Reads a font table; fonts/fonts.yaml is an example.

    Raises ValueError, with file and field, if the table cannot be read or a font file is missing.
    """
    path = Path(path)
    try:
        table = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: cannot read the font table ({_one_line(error)})") from error
    if not isinstance(table, dict) or "default" not in table or not isinstance(table.get("languages"), dict):
        raise ValueError(f"{path}: a font table needs the fields 'default' (a file) and 'languages' (name: [files])")

    def font(field: str, name: str) -> Font:
        file = path.parent / name
        if not file.is_file():
            raise ValueError(f"{path}: {field}: font file {file} does not exist")
        return Font(file, capitals=name in capitals, script=name in script)

    capitals = _file_names(path, "capitals", table.get("capitals", []))
    script = _file_names(path, "script", table.get("script", []))
    languages = {
        str(language): tuple(
            font(f"languages.{language}", name) for name in _file_names(path, f"languages.{language}", names)
        )
        for language, names in table["languages"].items()
    }
    return FontTable(font("default", str(table["default"])), languages)


def draw_text(text: str, font: Font, size: int, spacing: float = 0.0, mode: str = "L") -> Image.Image:
    """Draws `text` at `size` pixels per em on a picture of the size of its bounding box. Blank text gives zeros.

    spacing: extra pixels between characters; 0 keeps the font's kerning. mode: "L" for coverage 0..255, "1" for the
    rasteriser's bilevel output (Pillow's modes).
    """
    face = font.face(size)
    if spacing == 0:
        left, top, right, bottom = face.getbbox(text)
        pens = [(text, -left)]
    else:
        pens, pen = [], 0.0
        for char in text:
            pens.append((char, pen))
            pen += face.getlength(char) + spacing
        boxes = [(x, face.getbbox(char)) for char, x in pens]
        left = min(x + box[0] for x, box in boxes)
        top, right = min(box[1] for _, box in boxes), max(x + box[2] for x, box in boxes)
        bottom = max(box[3] for _, box in boxes)
        pens = [(char, x - left) for char, x in pens]
    canvas = Image.new(mode, (max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))))
    draw = ImageDraw.Draw(canvas)
    for part, x in pens:
        draw.text((x, -top), part, fill=255, font=face)
    return canvas


@lru_cache(maxsize=2048)
def _face(path: Path, size: int) -> ImageFont.FreeTypeFont:
    # The basic layout does not depend on a shaping library, so that a text looks the same on every machine.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=65536)
def _reference_box(path: Path, text: str) -> TextBox:
    return TextBox(*_face(path, REFERENCE_SIZE).getbbox(text))


@lru_cache(maxsize=65536)
def _has_glyph(path: Path, char: str) -> bool:
    """Whether something is drawn for the character. Of a blank, the font's own width is enough."""
    if char == " ":
        return True
    bitmap = _glyph_bitmap(path, char)
    is_drawn = any(bitmap[1]) or unicodedata.category(char) == "Zs"
    return is_drawn and bitmap != _glyph_bitmap(path, _NONCHARACTER)


@lru_cache(maxsize=4096)
def _glyph_bitmap(path: Path, char: str) -> tuple[tuple[int, int], bytes]:
    mask = _face(path, 40).getmask(char, mode="L")
    return mask.size, bytes(mask)


def _file_names(table: Path, field: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{table}: {field}: expected a list of font files, got {value!r}")
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
