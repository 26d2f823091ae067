"""Which modules of AnyText2 carry the student's LoRA: presets, a regular expression, or a file of module paths.

Module paths are the official ones, so the same adapter fits the reference implementation.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

_ATTENTION = r"attn[12]x?\.to_(q|k|v|out\.0)"

TARGET_PRESETS: dict[str, str] = {
    # Attention of UNet (attn1, attn2, attn1x, attn2x) and WriteNet, and the WriteNet's 1x1 output convolutions.
    "paper": rf"^((model\.diffusion_model|control_model)\..*{_ATTENTION}|control_model\.zero_convs\.\d+\.0)$",
    # Attention after the points where the WriteNet's maps are added. The UNet's encoder, its middle block and the
    # WriteNet stay the teacher's.
    "decoder": rf"^model\.diffusion_model\.output_blocks\..*{_ATTENTION}$",
    # Every layer of UNet and WriteNet, but for the WriteNet's first convolution: the latent that it sees is zero
    # (fast_control), and with it the gradient of an adapter there.
    "all": r"^(model\.diffusion_model\.|control_model\.(?!input_blocks\.0\.0$))",
}
ADAPTED = ("model.diffusion_model.", "control_model.")
"""The networks that may carry an adapter, by the beginning of their paths."""
_PRESETS = ", ".join(TARGET_PRESETS)


def lora_targets(model: nn.Module, targets: str) -> list[str]:
    """Paths of the Linear and Conv2d modules that carry the LoRA, in the model's order. Needs no weights.

    targets: a preset's name; a text file with a module path or a regular expression on each line; or one regular
    expression over module paths. Raises ValueError for an unknown preset, a missing file, a malformed pattern, a
    pattern without a match, a layer that PEFT cannot adapt, and one that teacher and student share.
    """
    candidates = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if targets in TARGET_PRESETS:
        chosen = _search(candidates, TARGET_PRESETS[targets])
    elif "/" in targets or targets.endswith(".txt") or Path(targets).is_file():
        chosen = _from_file(candidates, Path(targets))
    elif re.fullmatch(r"[\w-]*", targets):
        raise ValueError(
            f"lora.targets={targets!r} is no preset ({_PRESETS}); give one, a text file with a module path or pattern "
            r"on each line, or a pattern, as in '\.attn2x\.'"
        )
    else:
        try:
            chosen = _search(candidates, targets)
        except re.error as error:
            raise ValueError(
                f"lora.targets={targets!r}: neither a preset ({_PRESETS}) nor a file nor a pattern: {error}"
            ) from error
    if not chosen:
        raise ValueError(f"lora.targets={targets!r} matches no Linear or Conv2d of the model; presets: {_PRESETS}")
    _refuse_groups(model, chosen)
    _refuse_shared(chosen)
    return [name for name in candidates if name in chosen]


def _search(candidates: list[str], pattern: str) -> set[str]:
    compiled = re.compile(pattern)
    return {name for name in candidates if compiled.search(name)}


def _from_file(candidates: list[str], path: Path) -> set[str]:
    """The modules that the lines of a file match. A module's path matches that module and all modules in it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"lora.targets={path}: {reason}; presets: {_PRESETS}") from error
    chosen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        pattern = line.partition("#")[0].strip()
        if not pattern:
            continue
        where = f"lora.targets={path}: line {number}, {pattern!r}"
        found = {name for name in candidates if name == pattern or name.startswith(f"{pattern}.")}
        try:
            found = found or _search(candidates, pattern)
        except re.error as error:
            raise ValueError(f"{where}: neither a module's path nor a pattern: {error}") from error
        if not found:
            raise ValueError(f"{where}: matches no Linear or Conv2d of the model")
        chosen |= found
    if not chosen:
        raise ValueError(f"lora.targets={path}: no line names a module; presets: {_PRESETS}")
    return chosen


def _refuse_shared(chosen: set[str]) -> None:
    """Text tower, text embedding and VAE serve teacher and student alike: an adapter there would get no gradient."""
    shared = sorted(name for name in chosen if not name.startswith(ADAPTED))
    if shared:
        raise ValueError(
            f"lora.targets chooses {len(shared)} layers outside of UNet and WriteNet, first {shared[0]}: teacher and "
            f"student share their outputs, so that an adapter there learns nothing; begin with {' or '.join(ADAPTED)}"
        )


def _refuse_groups(model: nn.Module, chosen: set[str]) -> None:
    grouped = [n for n in chosen if isinstance(m := model.get_submodule(n), nn.Conv2d) and m.groups > 1]
    if grouped:
        raise ValueError(
            f"lora.targets chooses {len(grouped)} convolutions in groups, first {min(grouped)}: PEFT cannot merge a "
            "LoRA of those, nor make a DoRA; leave them out"
        )
