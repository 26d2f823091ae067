"""Reads adapters with the PEFT of this interpreter: `python read_adapter.py FOLDER [...]`. Needs no package of ours.

The model has the modules that the adapter names, with the adapter's sizes. What PEFT attaches to it is compared with
the file, value by value, and the adapter is merged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

PREFIX = "base_model.model."


def make_model(targets: list[str], tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Linear layers and convolutions at the paths of `targets`, and one elsewhere that ends as the first of them."""
    root = nn.Module()
    root.elsewhere = nn.ModuleDict({targets[0].rpartition(".")[2]: nn.Linear(3, 3)})
    for path in targets:
        a, b = (tensors[f"{PREFIX}{path}.lora_{name}.weight"] for name in "AB")
        *parents, name = path.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        layer = nn.Linear(a.shape[1], b.shape[0]) if a.dim() == 2 else nn.Conv2d(a.shape[1], b.shape[0], a.shape[2:])
        module.add_module(name, layer)
    return root


def check(folder: Path) -> str:
    """Raises AssertionError where what is attached is not what the file holds."""
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # PyPI's does not load beside a CPU build of torch
    import peft

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    model = peft.PeftModel.from_pretrained(make_model(config["target_modules"], tensors), str(folder))
    attached = {n.replace(".default", ""): p for n, p in model.named_parameters() if ".lora_" in n}
    # PEFT keeps the lengths of DoRA in a module of its own, which the file does not show.
    attached = {n.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): p for n, p in attached.items()}
    assert attached.keys() == tensors.keys(), attached.keys() ^ tensors.keys()
    assert all(torch.equal(attached[name].detach(), tensors[name]) for name in tensors)
    assert all(bool(t.any()) for t in tensors.values()), "an adapter that was not trained proves nothing"
    first = config["target_modules"][0]
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    assert model.get_submodule(PREFIX + first).scaling["default"] == scale
    model.merge_and_unload()
    return f"PEFT {peft.__version__}: {len(tensors)} tensors of {folder.name} attached, scale {scale:g}, merged"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(check(Path(name)), flush=True)
