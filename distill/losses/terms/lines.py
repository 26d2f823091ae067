"""Shared by the terms on decoded lines of text: which lines, their decoded pictures, and the mean over them.

Shape legend: B batch, C channels, h/w latent cells, N decoded lines of the batch, T columns, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anytext2.core.transfer import to_device
from distill.losses.line_crops import LinePlace, choose_lines, decode_lines
from distill.losses.terms.base import TermConfig, TermInput


@dataclass
class LineTermConfig(TermConfig):
    """``max_lines``: lines of a sample that are decoded, drawn anew in every epoch. ``step_weight``: multiply a
    sample's value by alpha-bar_t, as in AnyText, because at high noise any clean estimate is blurred.
    """

    max_lines: int = 2
    step_weight: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_lines < 1:
            raise ValueError(f"max_lines = {self.max_lines}: must be at least 1 (leave the term out to switch it off)")


@dataclass(frozen=True)
class Lines:
    """The recogniser's inputs [N, 3, 48, 320] in [-1, 1], right-padded with 0. ``student`` is decoded from the
    student's x0, with its graph; ``clean`` from the picture's own latent, without one.
    """

    places: tuple[LinePlace, ...]
    student: Tensor
    clean: Tensor


def picture_size(given: TermInput) -> tuple[int, int]:
    """(H, W) of the pictures in pixels."""
    height, width = given.item.batch.position.shape[-2:]
    return height, width


def decoded_lines(given: TermInput, max_lines: int) -> Lines | None:
    """Up to ``max_lines`` lines of each sample; None where the batch has no line. For `TermInput.shared`."""
    item, size = given.item, picture_size(given)
    places = choose_lines(item.batch, item.draws, max_lines, size, size[0] // given.x0.shape[-2])
    if not places:
        return None
    model = given.roles.model
    again = model.control_model.activation_checkpointing and torch.is_grad_enabled()
    decode = partial(checkpoint, model.decode, use_reentrant=False) if again else model.decode
    student = decode_lines(given.x0, places, decode)
    with torch.no_grad():
        return Lines(tuple(places), student, decode_lines(given.clean, places, model.decode))


def student_features(given: TermInput, max_lines: int) -> Tensor:
    """The frozen recogniser's features [N, T, D] of the student's `decoded_lines`, of which there are some."""
    lines = given.shared(decoded_lines, max_lines)
    assert lines is not None
    return given.roles.model.text_predictor.features(lines.student)


def mean_of_lines(values: Tensor, places: Sequence[LinePlace], given: TermInput, step_weight: bool) -> Tensor:
    """Each sample's mean [B] over its lines' values [N], 0 without any; with ``step_weight`` times alpha-bar_t."""
    of = [place.row for place in places]
    rows = to_device(torch.tensor(of), values.device)
    # counted on the host: bincount would have to ask the device how many rows there are
    counts = torch.tensor([max(1, of.count(row)) for row in range(given.t.shape[0])], dtype=values.dtype)
    means = values.new_zeros(given.t.shape[0]).index_add(0, rows, values) / to_device(counts, values.device)
    return means * given.schedule.to(means.device).alphas_cumprod[given.t].to(means) if step_weight else means


def no_lines(given: TermInput) -> Tensor:
    """0 for each sample [B]."""
    return given.x0.new_zeros(given.x0.shape[0])
