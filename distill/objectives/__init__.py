"""The objectives by name. Each class has a ``Config`` dataclass and is built as ``Class(config, schedule)``."""

from __future__ import annotations

from typing import Any

from distill.adapters.roles import Roles
from distill.losses.step import LossOutput, StepInput
from distill.objectives.autoencode import Autoencode
from distill.objectives.base import AlternatingObjective, FullWeightObjective, Objective
from distill.objectives.consistency import Consistency
from distill.objectives.denoise import Denoise
from distill.objectives.distribution_matching import DistributionMatching
from distill.objectives.phased import Phased
from distill.objectives.recognize import Recognize
from distill.objectives.trajectory import Trajectory
from distill.objectives.x0_regression import X0Regression

OBJECTIVES: dict[str, Any] = {
    "consistency": Consistency,
    "phased": Phased,
    "trajectory": Trajectory,
    "distribution_matching": DistributionMatching,
    "x0_regression": X0Regression,
    "denoise": Denoise,
    "autoencode": Autoencode,
    "recognize": Recognize,
}

__all__ = ["OBJECTIVES", "AlternatingObjective", "FullWeightObjective", "LossOutput", "Objective", "Roles", "StepInput"]
