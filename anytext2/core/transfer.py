"""Copies from the host to an accelerator for which the host does not wait."""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    """The tensor on ``device``; None: where it is.

    A copy from pageable memory makes the host wait for everything that the accelerator still has to do. Page-locked
    memory does not, and torch keeps it until the copy is made.
    """
    target = tensor.device if device is None else torch.device(device)
    if target == tensor.device:
        return tensor
    if target.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(target, non_blocking=target.type != "cpu")
