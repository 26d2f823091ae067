"""Options of samples: the recipe's `data.options`. Each has its help text and range here, for errors and documents."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def option(
    default: Any, help: str, least: float | None = None, most: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A dataclass field with its documentation. least, most: range of a number, or of each number of a pair."""
    return field(default=default, metadata={"help": help, "least": least, "most": most, "choices": choices})


@dataclass(frozen=True)
class DatasetConfig:
    """How samples are made of annotated pictures; `OPTIONS` documents the fields."""

    resolution: int = option(512, "side of the picture in pixels, a multiple of 8", 64)
    max_lines: int = option(
        5, "lines of a sample; of more, a random selection is used and the loss ignores the others", 1
    )
    max_chars: int = option(20, "characters of a line; longer texts are cut", 1)
    glyph_scale: int = option(1, "pixels of the glyph page per pixel of the picture", 1)
    ink_threshold: float = option(0.1, "least coverage at which a pixel of the glyph page is ink", 0, 1)
    mask_img_prob: float = option(
        0.5, "share of samples in editing mode: the picture around the lines is an input of the model", 0, 1
    )
    mask_pos_prob: float = option(1.0, "share of lines whose position is given; zeros otherwise", 0, 1)
    font_hint_prob: float = option(0.8, "share of lines whose strokes are in the font hint", 0, 1)
    font_hint_area: tuple[float, float] = option(
        (0.7, 1.0), "range of the share of a line's length that the font hint keeps", 0, 1
    )
    font_hint_randaug: bool = option(True, "rotate, shift and scale the font hint at random")
    color_prob: float = option(1.0, "share of lines whose colour is given, if the annotation has one", 0, 1)
    rand_font: bool = option(
        True, "draw the glyph page in a random font of the language; false: always in the first one"
    )
    exif: str = option(
        "ignore",
        "EXIF orientation: `ignore` it as the reference does; `apply` it if polygons were drawn on turned pictures",
        choices=("ignore", "apply"),
    )
    wm_threshold: float = option(1.0, "pictures with a greater watermark score (`wm_score`) are left out")
    cap_watermark: bool | None = option(
        None,
        "end captions of pictures with a `wm_score` with ` with watermarks ` (above 0.5) or ` no watermarks `; "
        "not set: as `like_reference`",
    )
    max_caption_words: int = option(
        128, "words of an image caption; of more, the first sentence and random others are used", 1
    )
    like_reference: bool = option(
        False,
        "draw glyph page and glyph lines as AnyText2's dataset code does, pixel for pixel: the official checkpoint was "
        "trained on these drawings",
    )

    @property
    def tells_watermarks(self) -> bool:
        """Whether captions tell of watermarks: `cap_watermark`, or what it is by default."""
        return self.like_reference if self.cap_watermark is None else self.cap_watermark

    def __post_init__(self) -> None:
        for name, documented in OPTIONS.items():
            _check(name, getattr(self, name), documented)
        if self.resolution % 8:
            raise ValueError(f"resolution: {self.resolution} must be a multiple of 8, at least 64")
        if self.font_hint_area[0] > self.font_hint_area[1]:
            raise ValueError(f"font_hint_area: {self.font_hint_area} must be two rising numbers in [0, 1]")


@dataclass(frozen=True)
class Option:
    """What is documented about one option. least, most: None where there is no limit. choices: empty where any value
    of the type is possible."""

    default: Any
    help: str
    least: float | None
    most: float | None
    choices: tuple[str, ...]

    @property
    def range(self) -> str:
        """The possible values in words, as in '0 to 1'; empty where any value of the type is possible."""
        if self.choices:
            return ", ".join(self.choices)
        if self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return "" if self.least is None else f"at least {self.least:g}"


OPTIONS: dict[str, Option] = {f.name: Option(f.default, **f.metadata) for f in fields(DatasetConfig)}


def _check(name: str, value: Any, documented: Option) -> None:
    """Raises ValueError where the value, or one number of a pair, is out of range."""
    if documented.choices and value not in documented.choices:
        raise ValueError(f"{name}: {value!r} must be one of {', '.join(documented.choices)}")
    for number in value if isinstance(value, (tuple, list)) else [value]:
        too_small = documented.least is not None and not number >= documented.least  # NaN included
        if too_small or (documented.most is not None and not number <= documented.most):
            raise ValueError(f"{name}: {value} must be {_range_in_error(documented)} ({documented.help})")


def _range_in_error(documented: Option) -> str:
    if documented.most is not None:
        return f"in [{documented.least:g}, {documented.most:g}]"
    return f"at least {documented.least:g}"
