"""The loss terms by name. Each class has a ``Config`` dataclass (a `TermConfig`) and is built as ``Class(config)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.terms.attention_mass import AttentionMass
from distill.terms.base import Compared, Term, TermConfig
from distill.terms.edges import Gradient
from distill.terms.frequency import FocalFrequency
from distill.terms.ocr_ctc import OcrCtc
from distill.terms.ocr_features import OcrFeatures
from distill.terms.topology import Topology

TERMS: dict[str, Any] = {
    "focal_frequency": FocalFrequency,
    "gradient": Gradient,
    "ocr_features": OcrFeatures,
    "ocr_ctc": OcrCtc,
    "topology": Topology,
    "attention_mass": AttentionMass,
}


def in_need(terms: Mapping[str, TermConfig], need: str, update: int | None = None) -> list[str]:
    """Names of the given terms whose class says ``need = True`` (see `Term`), of those that count at ``update``."""
    return [
        name
        for name, config in terms.items()
        if getattr(TERMS[name], need, False) and (update is None or update >= config.after)
    ]


__all__ = ["TERMS", "Compared", "Term", "TermConfig", "in_need"]
