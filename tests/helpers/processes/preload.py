"""What every rank imports sooner or later, imported once in the fork server: a rank then starts in milliseconds.

DeepSpeed's Muon optimizer compiles functions when it is imported, which brings torch's whole compiler: about two
seconds of a rank's time for an optimizer that no run uses.
"""

from __future__ import annotations

import contextlib
import gc
import importlib

from PIL import Image

IMPORTS = ("anytext2", "deepspeed", "launch.train", "mlflow", "pytest")
LATE_IMPORTS = (
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.module_inject",
    "deepspeed.moe.layer",
)
"""Modules that other releases of DeepSpeed may lack."""

gc.disable()  # nothing of an import is garbage
for name in IMPORTS:
    importlib.import_module(name)
for name in LATE_IMPORTS:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
Image.init()
gc.freeze()  # what is imported is never searched for garbage again, in no rank
gc.enable()
