"""The loss terms by name. Each class has a ``Config`` dataclass (a `TermConfig`) and is built as ``Class(config)``."""

from __future__ import annotations

from typing import Any

from distill.terms.base import Compared, Term, TermConfig
from distill.terms.edges import Gradient
from distill.terms.frequency import FocalFrequency

TERMS: dict[str, Any] = {
    "focal_frequency": FocalFrequency,
    "gradient": Gradient,
}

__all__ = ["TERMS", "Compared", "Term", "TermConfig"]
