"""The loss terms by name. Each class has a ``Config`` dataclass (a `TermConfig`) and is built as ``Class(config)``."""

from __future__ import annotations

from collections.abc import Mapping

from distill.losses.terms.attention_mass import AttentionMass
from distill.losses.terms.base import Term, TermConfig, TermInput
from distill.losses.terms.edges import Gradient
from distill.losses.terms.frequency import FocalFrequency
from distill.losses.terms.ocr_ctc import OcrCtc
from distill.losses.terms.ocr_features import OcrFeatures
from distill.losses.terms.topology import Topology

TERMS: dict[str, type[Term]] = {
    "focal_frequency": FocalFrequency,
    "gradient": Gradient,
    "ocr_features": OcrFeatures,
    "ocr_ctc": OcrCtc,
    "topology": Topology,
    "attention_mass": AttentionMass,
}


def terms_with_recognizer(terms: Mapping[str, TermConfig]) -> list[str]:
    """Names of those terms that use the model's own recogniser."""
    return [name for name in terms if TERMS[name].needs_recognizer]


def terms_with_charset(terms: Mapping[str, TermConfig]) -> list[str]:
    """Names of those terms that need the characters of the recogniser's classes."""
    return [name for name in terms if TERMS[name].needs_charset]


def terms_with_attention(terms: Mapping[str, TermConfig], update: int | None = None) -> list[str]:
    """Names of those terms that need the WriteNet's attention, by default at any update."""
    return [
        name
        for name, config in terms.items()
        if TERMS[name].needs_attention and (update is None or update >= config.after)
    ]


__all__ = [
    "TERMS",
    "Term",
    "TermConfig",
    "TermInput",
    "terms_with_attention",
    "terms_with_charset",
    "terms_with_recognizer",
]
