"""AnyText2: the model and its data.

Importing this package makes torchvision importable where torch has no CUDA (see below). It imports nothing heavy
itself, so that a command's `--help` needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_declared: list[Any] = []  # a torch.library.Library must stay alive


class _BeforeTorchvision(MetaPathFinder):
    """Declares the schemas that torchvision's Python code looks up, right before it is imported for the first time.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its compiled library does not load, and
    `import torchvision` (by open_clip, timm, transformers, and through them peft) fails at a missing schema. The
    operators themselves are never called here.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            _declare_torchvision_operators()
        return None  # the usual finders go on


def _declare_torchvision_operators() -> None:
    import torch

    if torch.version.cuda is None and not _torchvision_operators_load():
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


def _torchvision_operators_load() -> bool:
    """Whether torchvision's compiled operators fit this torch. True if torchvision is absent: nothing to repair."""
    import torch

    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
    return True


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTorchvision())
