"""The columns of each character of a glyph line: an alignment that a recogniser need not find by CTC alone.

CTC from scratch first learns to predict only blanks and may stay there for thousands of updates. We draw the glyph line
ourselves: its ink begins with the first character and ends with the last, and the font has the width of each one.

Shape legend: H/W pixels of the glyph line, T = 40 columns of the recogniser.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from anytext2.core.line_crop import LINE_HEIGHT, LINE_WIDTH
from anytext2.glyphs.fonts import Font
from anytext2.model.recognizer import COLUMNS, CTC_BLANK

_MEASURING_SIZE = 64  # pixels; only the proportions of the advance widths matter
_CORE = 0.6  # the middle part of a character that gets its class; the columns between two characters stay blank


def glyph_line_columns(glyph_line_HW: Tensor, text: str, font: Font, charset: Sequence[str]) -> Tensor:
    """The class of every column, int64 [T]: the character whose middle part covers it, else the blank.

    Every known character gets at least one column; equal neighbours too narrow for a blank between them share theirs.
    A line without ink is all blank.
    """
    columns = torch.full((COLUMNS,), CTC_BLANK, dtype=torch.int64)
    inked = glyph_line_HW.any(dim=0).nonzero().flatten().tolist()
    if not inked or not text:
        return columns
    per_column = LINE_WIDTH / COLUMNS * glyph_line_HW.shape[0] / LINE_HEIGHT
    face = font.face(_MEASURING_SIZE)
    ends = list(accumulate(face.getlength(char) for char in text))
    first, width = inked[0], inked[-1] + 1 - inked[0]
    classes = {char: number for number, char in enumerate(charset)}
    for char, begin, end in zip(text, [0.0, *ends[:-1]], ends, strict=True):
        middle, half = (begin + end) / 2 / ends[-1], _CORE * (end - begin) / 2 / ends[-1]
        low, high = ((first + width * edge) / per_column - 0.5 for edge in (middle - half, middle + half))
        covered = range(max(round(low), 0), min(round(high), COLUMNS - 1) + 1)
        for column in covered or [min(max(round((low + high) / 2), 0), COLUMNS - 1)]:
            columns[column] = classes.get(char, CTC_BLANK)
    return columns
