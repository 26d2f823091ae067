"""Which counts of a data report have a limit, and why the others have none.

Some items and lines are left out by a convention of the public data sets, others for a fault. Of faults a file may have
only a share. Every count has an entry in `LIMITS`; `limit_of` fails for a reason without one.
"""

from __future__ import annotations

from dataclasses import dataclass

IGNORED = " (ignored by the loss)"
"""End of a reason for which the line's region is known and ignored by the loss."""

FAULTY_LINES, FAULTY_ITEMS = "data.max_faulty_lines", "data.max_faulty"


@dataclass(frozen=True)
class Limit:
    """key: the recipe key or command option that limits the count, empty where nothing does.

    why: for a fault, what is wrong and what would work; else why there is no limit.
    """

    key: str
    why: str


def _faulty_line(why: str) -> Limit:
    return Limit(FAULTY_LINES, why)


def _no_limit(why: str) -> Limit:
    return Limit("", why)


_MALFORMED_ITEM = Limit(FAULTY_ITEMS, "a field is missing or has the wrong form; correct it")
_MALFORMED_LINE = _faulty_line("a field is missing or has the wrong form; correct it, or write valid: false")

LIMITS: dict[str, Limit] = {
    # what loading leaves out: items
    "pictures: not an object": _MALFORMED_ITEM,
    "pictures: faulty img_name": _MALFORMED_ITEM,
    "pictures: faulty caption": _MALFORMED_ITEM,
    "pictures: faulty wm_score": _MALFORMED_ITEM,
    "pictures: faulty annotations": _MALFORMED_ITEM,
    "pictures: name outside data_root": Limit(FAULTY_ITEMS, "names must be below data_root; change one of the two"),
    "pictures: watermark score above the threshold": _no_limit("asked for with data.options.wm_threshold"),
    "pictures: beyond the fraction in use": _no_limit("asked for by the caller"),
    # what loading leaves out: lines
    "lines: not an object": _MALFORMED_LINE,
    "lines: faulty polygon": _MALFORMED_LINE,
    "lines: faulty text": _MALFORMED_LINE,
    "lines: faulty language": _MALFORMED_LINE,
    "lines: faulty color": _MALFORMED_LINE,
    "lines: coordinates like shares": _faulty_line(
        "coordinates look like shares of the picture, pixels are needed: multiply x by its width and y by its height"
    ),
    "lines: polygon with an area below one pixel": _faulty_line("boxes have no area; give corners in pixels"),
    "lines: same box twice": _faulty_line("the same box occurs twice in a picture; remove the copies"),
    "lines: same box with different texts": _faulty_line(
        "the same box has different texts in a picture; keep the right one"
    ),
    "lines: text with unpaired surrogates": _faulty_line("texts hold half characters; write them again as UTF-8"),
    "lines: text with U+FFFD, left by a wrong encoding": _faulty_line("texts are lost; write them again as UTF-8"),
    "lines: text of several rows": _no_limit("some label tools draw one box around several rows; the loss ignores it"),
    "lines: text that marks a line as unreadable, such as ###": _no_limit("the mark of ICDAR, MLT, ReCTS and LSVT"),
    "lines: marked invalid": _no_limit("valid: false is the format's own mark of text that is not to be learned"),
    "lines: empty polygon": _no_limit("AnyWord's own way to say that the place is not known"),
    "lines: empty text": _no_limit("public sets leave the text of unreadable lines empty"),
    # lines that are used, but changed or perhaps not drawn as they are written
    "lines: language missing (inferred from the script)": _no_limit("the language chooses the fonts only"),
    "lines: text with invisible characters (dropped)": _no_limit("the drawing is the same without them"),
    "lines: text not in Unicode's form NFC (composed)": _no_limit("both forms are the same text"),
    "lines: text with white space other than single blanks (reduced)": _no_limit("a line is drawn with single blanks"),
    "lines: right-to-left text": _no_limit("drawn as far as the fonts' layout can; see docs/DATA.md"),
    "lines: text with combining marks": _no_limit("drawn as far as the fonts' layout can; see docs/DATA.md"),
    "lines: text with emoji": _no_limit("drawn as far as a font has them; see docs/DATA.md"),
    "lines: polygon with crossing edges (its convex hull is used)": _no_limit("the hull is the box that was meant"),
    # what only the pictures show
    "polygons: wholly outside the picture (line left out)": _faulty_line(
        "boxes lie outside of their pictures; give pixels of the picture file as x, y"
    ),
    "polygons: mostly outside the picture": _faulty_line(
        "boxes lie for the greater part outside of their pictures; give pixels of the picture file as x, y"
    ),
    "polygons: partly outside the picture": _no_limit("a picture's edge may cut a line of text"),
    "polygons: corners run counter-clockwise": _no_limit("the order of the corners is not used"),
    "texts: no character has a glyph": _faulty_line(
        "fonts/ has no glyph for any character of the text; add a font for its language to fonts/fonts.yaml"
    ),
    # the rest of the report of launch/check_dataset.py
    "unreadable": Limit("data.max_unreadable", "pictures are missing or corrupt"),
    "audit": Limit("--max-findings", "samples break a rule of the model's inputs"),
    "uncovered": _no_limit("a character without a glyph is left out; a line of nothing else is a fault of its own"),
    "pictures_without_lines": _no_limit("AnyText2 has a blank line for a picture without text; a file of nothing else "
                                        "is refused"),
    "lines_per_picture": _no_limit("of more than data.options.max_lines lines, others are learned each epoch"),
    "text_lengths": _no_limit("texts longer than data.options.max_chars are cut, as in AnyText2"),
    "languages": _no_limit("a language without fonts of its own is drawn with the default font"),
    "colors": _no_limit("colours are optional, and none of 0 to 255 is wrong"),
    "sizes": _no_limit("pictures of every size are scaled"),
    "formats": _no_limit("others than those that are read are unreadable"),
    "orientations": _no_limit("what counts is whether the boxes fit; see orientation_fits"),
    "orientation_fits": Limit("--max-findings", "boxes fit another orientation than data.options.exif says"),
}  # fmt: skip


def limit_of(reason: str) -> Limit:
    """The entry of a count; the name of a reason may end with `IGNORED`."""
    name = reason.removesuffix(IGNORED)
    assert name in LIMITS, f"{name!r} has no entry in LIMITS: is it a fault, or why has it no limit?"
    return LIMITS[name]


def is_faulty_line(reason: str) -> bool:
    """Whether the count is of lines that are left out for a fault."""
    return limit_of(reason).key == FAULTY_LINES
