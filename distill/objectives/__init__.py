"""The objectives by name. Each class has a ``Config`` dataclass and is built as ``Class(config, schedule)``."""

from __future__ import annotations

from distill.objectives.autoencode import Autoencode
from distill.objectives.base import Objective
from distill.objectives.consistency import Consistency
from distill.objectives.denoise import Denoise
from distill.objectives.distribution_matching import DistributionMatching
from distill.objectives.phased import Phased
from distill.objectives.recognize import Recognize
from distill.objectives.trajectory import Trajectory
from distill.objectives.x0_regression import X0Regression

OBJECTIVES: dict[str, type[Objective]] = {
    "consistency": Consistency,
    "phased": Phased,
    "trajectory": Trajectory,
    "distribution_matching": DistributionMatching,
    "x0_regression": X0Regression,
    "denoise": Denoise,
    "autoencode": Autoencode,
    "recognize": Recognize,
}
