"""AnyText2: the model and its data.

Importing this package first makes torchvision importable where torch has no CUDA (see below); nothing else happens.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch


def _torchvision_operators_load() -> bool:
    """Whether torchvision's compiled operators fit this torch. True if torchvision is absent: nothing to repair."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
    return True


def _declare_torchvision_operators() -> torch.library.Library:
    """Declare the schemas that torchvision's Python code looks up while it is imported.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its compiled library does not load, and
    `import torchvision` (by open_clip, timm, transformers, and through them peft) fails at a missing schema. The
    operators themselves are never called here. The returned library must stay alive.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_TORCHVISION_SCHEMAS = None
if torch.version.cuda is None and not _torchvision_operators_load():
    _TORCHVISION_SCHEMAS = _declare_torchvision_operators()
