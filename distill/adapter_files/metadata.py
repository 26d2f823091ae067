"""What an exported file says about its student: one JSON text among the metadata of the file.

In a safetensors file it is part of the header, in a torch file an entry beside "state_dict".
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from anytext2.core.rng import seed_for

METADATA = "anytext2_distill"
"""The key of our own metadata."""
FORMAT, RECIPE, BASE, FINGERPRINT = "format", "recipe", "base", "fingerprint"
"""Keys of the JSON object under it."""
FINGERPRINT_LAYERS = 8
SAME_BASE = 0.01
"""Least distance (root mean square) of two fingerprints that means other weights; half precision makes 0.002."""


def read_metadata(file: Path) -> dict[str, str]:
    """The texts in a safetensors file's header, or our own in a torch file. Empty where the file cannot be read."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as content:
                return dict(content.metadata() or {})
        if not zipfile.is_zipfile(file):
            return {}
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError):
        return {}
    note = loaded.get(METADATA) if isinstance(loaded, Mapping) else None
    return {METADATA: note} if isinstance(note, str) else {}


def read_note(file: Path) -> dict[str, Any] | None:
    """What the file says about its student; None for a file of another program. Raises ValueError for a damaged one."""
    text = read_metadata(file).get(METADATA)
    if text is None:
        return None
    try:
        note = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: its metadata {METADATA} are not JSON: {error}") from error
    if not isinstance(note, dict) or not isinstance(note.get(RECIPE), dict) or not isinstance(note.get(FORMAT), str):
        raise ValueError(f"{file}: its metadata {METADATA} have no {FORMAT} or {RECIPE}; export it again")
    return note


def fingerprint(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """A number for each weight by which other values are told apart: its projection on fixed random signs.

    The weights are scaled to length 1, so that values of the numbers are about standard normal.
    """
    return {name: round(_projection(name, weight), 5) for name, weight in weights.items()}


def fingerprint_layers(paths: list[str]) -> list[str]:
    """The layers, evenly spread over those of an adapter, whose weights stand for the base."""
    count = min(FINGERPRINT_LAYERS, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def other_base(note: Mapping[str, Any], model: nn.Module) -> str:
    """A line about how the model's weights differ from those that the file was made for; empty where they do not."""
    base = note.get(BASE) or {}
    told: dict[str, float] = base.get(FINGERPRINT) or {}
    if not told:
        return ""
    here = fingerprint({name: model.get_submodule(name).get_parameter("weight") for name in told})
    distance = (sum((here[name] - value) ** 2 for name, value in told.items()) / len(told)) ** 0.5
    if distance < SAME_BASE:
        return ""
    return (
        f"was made for other base weights ({base.get('file', 'unknown')}, distance {distance:.2g}); give model.weights"
    )


def _projection(name: str, weight: Tensor) -> float:
    generator = torch.Generator().manual_seed(seed_for(0, 0, 0, f"fingerprint/{name}"))
    signs = torch.randint(0, 2, (weight.numel(),), generator=generator).double() * 2 - 1
    flat = weight.detach().cpu().double().flatten()
    return float(flat @ signs / flat.norm().clamp_min(1e-30))
