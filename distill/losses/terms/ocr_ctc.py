"""Spelling: the frozen recogniser's CTC loss on the student's lines, as in AnyText2's second OCR loss.

A student that is trained against a recogniser overfits to it, so another one must score its spelling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anytext2.core.batch import Batch
from anytext2.model.recognizer import COLUMNS
from distill.losses.ctc import charset_of, columns_needed, text_loss
from distill.losses.line_crops import LinePlace
from distill.losses.terms.base import Term, TermInput
from distill.losses.terms.lines import LineTermConfig, decoded_lines, mean_of_lines, no_lines, student_features


class OcrCtc(Term):
    """-log P(text) / number of characters. Lines that the recogniser cannot read are left out: blank ones, those with
    characters outside its charset, and those too long for its columns.
    """

    Config = LineTermConfig
    needs_recognizer = True
    needs_charset = True

    def __init__(self, config: LineTermConfig) -> None:
        self.config = config

    def __call__(self, given: TermInput) -> Tensor:
        lines = given.shared(decoded_lines, self.config.max_lines)
        if lines is None:
            return no_lines(given)
        recognizer = given.roles.model.text_predictor
        charset = charset_of(recognizer)
        texts = [_text(given.item.batch, place) for place in lines.places]
        known = set(charset)
        readable = [number for number, text in enumerate(texts) if _is_readable(text, known)]
        if not readable:
            return no_lines(given)
        features = given.shared(student_features, self.config.max_lines)
        chosen = features[torch.tensor(readable, device=features.device)]
        chosen_texts = [texts[number] for number in readable]
        values = text_loss(recognizer.head(chosen), chosen_texts, charset)
        values = values / torch.tensor([len(text) for text in chosen_texts], device=values.device)
        return mean_of_lines(values, [lines.places[n] for n in readable], given, self.config.step_weight)


def _text(batch: Batch, place: LinePlace) -> str:
    return batch.texts[place.row][place.number]


def _is_readable(text: str, known: set[str]) -> bool:
    return bool(text.strip()) and known.issuperset(text) and columns_needed(text) <= COLUMNS
