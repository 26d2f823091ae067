"""The loss terms by name. Each class has a ``Config`` dataclass (a `TermConfig`) and is built as ``Class(config)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.losses.terms.attention_mass import AttentionMass
from distill.losses.terms.base import Term, TermConfig, TermInput
from distill.losses.terms.edges import Gradient
from distill.losses.terms.frequency import FocalFrequency
from distill.losses.terms.ocr_ctc import OcrCtc
from distill.losses.terms.ocr_features import OcrFeatures
from distill.losses.terms.topology import Topology

TERMS: dict[str, Any] = {
    "focal_frequency": FocalFrequency,
    "gradient": Gradient,
    "ocr_features": OcrFeatures,
    "ocr_ctc": OcrCtc,
    "topology": Topology,
    "attention_mass": AttentionMass,
}


def terms_needing(terms: Mapping[str, TermConfig], need: str, update: int | None = None) -> list[str]:
    """Names of the given terms whose class says ``need = True`` (see `Term`), of those that count at ``update``."""
    return [
        name
        for name, config in terms.items()
        if getattr(TERMS[name], need, False) and (update is None or update >= config.after)
    ]


__all__ = ["TERMS", "TermInput", "Term", "TermConfig", "terms_needing"]
