"""The shipped fonts: complete, licensed, measured linearly, and honest about what they lack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anytext2.glyphs.fonts import DEFAULT_FONT_TABLE, REFERENCE_SIZE, FontTable, draw_text, load_font_table
from tests.helpers.paths import ROOT

CONFIGS = ROOT / "anytext2" / "configs"


@pytest.fixture(scope="module")
def table() -> FontTable:
    return load_font_table()


def test_every_font_file_is_in_the_table_and_has_its_licence(table: FontTable) -> None:
    folder = DEFAULT_FONT_TABLE.parent
    files = {path for path in folder.iterdir() if path.suffix in (".ttf", ".otf", ".ttc")}
    assert files == {font.path for fonts in table.languages.values() for font in fonts} | {table.default.path}
    for path in files:
        licence = (folder / f"{path.stem}.LICENSE.txt").read_text(encoding="utf-8")
        assert any(name in licence for name in ("SIL OPEN FONT LICENSE", "Apache License", "PREAMBLE", "public domain"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8 * 2**20


def test_chinese_font_covers_gb2312_and_kana(table: FontTable) -> None:
    pairs = (bytes([row, cell]) for row in range(0xB0, 0xF8) for cell in range(0xA1, 0xFF))
    gb2312 = "".join(pair.decode("gb2312", errors="ignore") for pair in pairs)
    assert len(gb2312) == 6763
    kana = "".join(map(chr, [*range(0x3041, 0x3095), *range(0x30A1, 0x30F7)]))
    (font,) = table.fonts_for("Chinese")
    assert font.missing_characters(gb2312[::7] + kana) == ()
    assert font.missing_characters((CONFIGS / "charset_tiny.txt").read_text(encoding="utf-8").replace("\n", "")) == ()


def test_latin_fonts_cover_ascii_but_know_their_limits(table: FontTable) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789%$&!?.,-"
    fonts = table.fonts_for("Latin")
    assert len(fonts) >= 4
    for font in fonts:
        assert font.missing_characters(letters + " ") == (), font.path
    assert fonts[1].missing_characters("A国B国家") == ("国", "家")


def test_small_letters_look_like_capitals_only_where_the_table_says_so(table: FontTable) -> None:
    for font in table.fonts_for("Latin"):
        small, capital = (np.asarray(draw_text(text, font, 40)) for text in ("aeg", "AEG"))
        assert np.array_equal(small, capital) == font.capitals, font.path


def test_size_that_fits_is_the_largest_that_fits(table: FontTable) -> None:
    for font in table.fonts_for("Latin"):
        for width, height in ((200.0, 60.0), (40.0, 300.0)):
            size = font.size_that_fits("Harbor", width, height)
            box = font.ink_box("Harbor")
            assert (
                box.scaled(size / REFERENCE_SIZE).width <= width and box.scaled(size / REFERENCE_SIZE).height <= height
            )
            larger = box.scaled((size + 1) / REFERENCE_SIZE)
            assert larger.width > width or larger.height > height
            drawn = draw_text("Harbor", font, size)
            assert drawn.width <= width + 3 and drawn.height <= height + 3  # hinting rounds each letter


def test_spacing_moves_letters_apart_by_exactly_that(table: FontTable) -> None:
    plain, spaced = (np.asarray(draw_text("国国国", table.default, 40, spacing=s)) > 0 for s in (5.0, 15.0))
    assert spaced.shape == (plain.shape[0], plain.shape[1] + 20)
    assert spaced.sum() == plain.sum()


def test_unknown_languages_fall_back(table: FontTable) -> None:
    assert table.fonts_for("Chinese_tra") == table.fonts_for("Chinese")
    assert table.fonts_for("Others") == (table.default,)


def test_a_glyph_is_one_that_is_drawn(table: FontTable) -> None:
    for font in {font for fonts in table.languages.values() for font in fonts}:
        controls = "".join(map(chr, [*range(32), *range(0x7F, 0xA0)])) + "\u200b\u2028\ufeff"
        assert font.missing_characters(controls) == tuple(controls), font.path
        assert font.supported("A" + controls + " B") == "A B"
    assert table.default.missing_characters("A\u3000\u00a0é℃") == ("℃",)  # in this font's map, but its glyph is blank
    assert table.default.missing_characters("\u200c\u200d") == ()  # they are not meant to be drawn
    assert table.default.supported("a\u200cb") == "ab"
    assert table.default.supported("a\u200cb", joiners=True) == "a\u200cb"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("default: no.ttf\nlanguages: {}", "no.ttf does not exist"),
        ("languages: {}", "needs the fields"),
        ("default: x\nlanguages: {Latin: a.ttf}", "languages.Latin: expected a list"),
        ("{", "cannot read"),
    ],
)
def test_faulty_tables_are_named(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "fonts.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=what) as error:
        load_font_table(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
