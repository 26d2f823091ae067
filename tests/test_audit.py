"""The audit: real batches and the real tiny model pass; every planted fault is found."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

from anytext2.annotations import load_records
from anytext2.batch import Batch, Conditions, Control, collate
from anytext2.dataset import AnyWordDataset, DatasetConfig
from anytext2.fonts import load_font_table
from anytext2.model import AnyText2, build_model, load_model_config
from anytext2.synthetic import SyntheticConfig, write_dataset
from distill.audit import (
    AuditError,
    Finding,
    audit_adapters,
    audit_batch,
    audit_conditions,
    audit_control,
    audit_recognizer,
    require,
)
from distill.planted import PLANTED
from distill.student import LoraSection, Roles, add_student

SIZE = 128


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> AnyWordDataset:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, 12, SyntheticConfig(size=SIZE, line_weights=(0, 0.5, 0.5)), seed=3)
    records, _ = load_records([folder / "data.json"])
    return AnyWordDataset(records, DatasetConfig(resolution=SIZE), 0, load_font_table())


@pytest.fixture(scope="module")
def batch(dataset: AnyWordDataset) -> Batch:
    """Two samples with two lines or more, the first one edited, the second one not."""
    samples = [dataset.sample(i, epoch) for i in range(len(dataset)) for epoch in range(4)]
    lined = [s for s in samples if s.n_lines >= 2]
    edited = next(s for s in lined if s.editing)
    return collate([edited, next(s for s in lined if not s.editing and s.index != edited.index)]).floating()


@pytest.fixture(scope="module")
def model() -> AnyText2:
    """The tiny model with every weight drawn, so that nothing is hidden behind a zero convolution."""
    torch.manual_seed(0)
    model = build_model(load_model_config("tiny")).requires_grad_(False)
    with torch.no_grad():
        for part in (model.model.diffusion_model, model.control_model):
            for parameter in part.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.05)
    return model


@pytest.fixture(scope="module")
def conditions(model: AnyText2, batch: Batch) -> Conditions:
    with torch.inference_mode():
        return model.condition(batch, model.masked_latents(batch))


def _said(findings: list[Finding]) -> str:
    return "\n".join(str(finding) for finding in findings)


# --- batches ---


def test_real_batches_pass(dataset: AnyWordDataset) -> None:
    for epoch in range(3):
        assert audit_batch(collate([dataset.sample(i, epoch) for i in range(len(dataset))]).floating()) == []


def _changed(tensor: torch.Tensor, at: Any, value: Any) -> torch.Tensor:
    copy = tensor.clone()
    copy[at] = value
    return copy


def _white_page(b: Batch) -> Batch:
    return replace(b, glyph=1 - b.glyph)


def _grey_page(b: Batch) -> Batch:
    """Drawn on white and averaged over the channels, as the forerunner did: nothing is zero."""
    return replace(b, glyph=0.35 + 0.65 * (1 - b.glyph.float()))


def _ink_elsewhere(b: Batch) -> Batch:
    clean = b.glyph.clone()
    clean[1] = 0
    free = b.position[1].amax(dim=0) == 0
    rows, columns = free.nonzero(as_tuple=True)
    clean[1, 0, rows[:200], columns[:200]] = 1
    return replace(b, glyph=clean)


def _no_ink(b: Batch) -> Batch:
    return replace(b, glyph=torch.zeros_like(b.glyph))


def _faint_lines(b: Batch) -> Batch:
    """A 1-bit picture divided by 255."""
    return replace(b, glyph_line=b.glyph_line.float() / 255)


def _empty_line(b: Batch) -> Batch:
    return replace(b, glyph_line=_changed(b.glyph_line, (0, 1), 0))


def _inverted_line(b: Batch) -> Batch:
    return replace(b, glyph_line=_changed(b.glyph_line, (0, 0), 1 - b.glyph_line[0, 0]))


def _ink_in_padding(b: Batch) -> Batch:
    return replace(b, glyph_line=_changed(b.glyph_line, (0, -1, 0, 0), 1))


def _joined_placeholders(b: Batch) -> Batch:
    return replace(b, text_caption=("Text says " + ", ".join("*" * b.n_lines[0]) + " .", b.text_caption[1]))


def _too_long_caption(b: Batch) -> Batch:
    return replace(b, text_caption=(b.text_caption[0], "word " * 74 + b.text_caption[1]))


def _star_in_image_caption(b: Batch) -> Batch:
    return replace(b, image_caption=("a * poster", b.image_caption[1]))


def _grey_colors(b: Batch) -> Batch:
    return replace(b, color=_changed(b.color, (1, 0), 0.5))


def _colors_over_255(b: Batch) -> Batch:
    return replace(b, color=_changed(b.color, (1, 0, 2), 256.0))


def _partly_unset_color(b: Batch) -> Batch:
    return replace(b, color=_changed(b.color, (1, 0), torch.tensor([500.0, 20.0, 20.0])))


def _negative_color(b: Batch) -> Batch:
    return replace(b, color=_changed(b.color, (0, 0, 0), -1.0))


def _image_of_255(b: Batch) -> Batch:
    return replace(b, image=(b.image + 1) * 127.5)


def _nan_image(b: Batch) -> Batch:
    return replace(b, image=_changed(b.image, (0, 0, 5, 5), float("nan")))


def _masked_out_of_range(b: Batch) -> Batch:
    return replace(b, masked_image=b.masked_image - 10 * b.position.amax(dim=1, keepdim=True))


def _black_not_minus_one(b: Batch) -> Batch:
    return replace(b, masked_image=_changed(b.masked_image, 1, 0.0))


def _mask_moved(b: Batch) -> Batch:
    return replace(b, masked_image=b.masked_image.roll(20, dims=-1))


def _position_of_255(b: Batch) -> Batch:
    return replace(b, position=b.position * 255)


def _positions_swapped(b: Batch) -> Batch:
    return replace(b, position=_changed(b.position, 1, b.position[1].roll(1, dims=0)))


def _text_lost(b: Batch) -> Batch:
    return replace(b, texts=(b.texts[0][:-1], b.texts[1]))


@pytest.mark.parametrize(
    ("plant", "check", "message"),
    [
        (_white_page, "glyph page", "% of the glyph page, the text boxes "),
        (_grey_page, "glyph page", "ink covers 100.0% of the glyph page"),
        (_grey_page, "mask range", "glyph is not in {0, 1}: values from 0.35 to 1"),
        (_ink_elsewhere, "glyph page", "of the ink lies outside the text boxes"),
        (_no_ink, "glyph page", "no ink, although the texts are"),
        (_faint_lines, "glyph line", "not in {0, 1}: values from 0 to 0.00392157"),
        (_empty_line, "glyph line", "line 2: empty, although the text is"),
        (_inverted_line, "glyph line", "white instead of white on black"),
        (_ink_in_padding, "glyph line", "has ink, but the sample has"),
        (_joined_placeholders, "placeholders", "has fewer placeholders after tokenisation"),
        (_too_long_caption, "placeholders", "has fewer placeholders after tokenisation"),
        (_star_in_image_caption, "placeholders", "image caption 'a * poster' holds a '*'"),
        (_grey_colors, "color", "[0.5, 0.5, 0.5] is not a colour of 0 to 255"),
        (_colors_over_255, "color", "is neither within 0 to 255 nor 500"),
        (_partly_unset_color, "color", "[500.0, 20.0, 20.0] is neither"),
        (_negative_color, "color", "is neither within 0 to 255 nor 500"),
        (_image_of_255, "image range", "image spans"),
        (_nan_image, "image range", "image holds values that are not finite"),
        (_masked_out_of_range, "image range", "masked_image spans -11"),
        (_black_not_minus_one, "masked image", "not constant -1 although nothing is edited"),
        (_mask_moved, "masked image", "differs from the image outside the text positions"),
        (_position_of_255, "mask range", "position is not in {0, 1}"),
        (_positions_swapped, "position", "of it lies in the line's own polygon"),
        (_text_lost, "lines", "n_lines is"),
    ],
)
def test_planted_fault_in_a_batch_is_found(
    batch: Batch, plant: Callable[[Batch], Batch], check: str, message: str
) -> None:
    assert audit_batch(batch) == []
    findings = [finding for finding in audit_batch(plant(batch)) if finding.check == check]
    assert any(message in str(finding) for finding in findings), _said(audit_batch(plant(batch)))
    with pytest.raises(AuditError, match="^audit: ") as error:
        require(findings)
    assert "\n" not in str(error.value) and any(name in str(error.value) for name in batch.name)


def test_require_counts_the_others() -> None:
    require([])
    with pytest.raises(AuditError, match=r"^audit: a: b: c \(and 1 more\)$"):
        require([Finding("a", "b", "c"), Finding("d", "e", "f")])
    assert issubclass(AuditError, ValueError)


# --- conditions ---


@pytest.fixture
def patched(model: AnyText2) -> Iterator[Callable[[nn.Module, str, Any], None]]:
    """Replaces a method of one module for one test."""
    done: list[tuple[nn.Module, str]] = []

    def patch(module: nn.Module, name: str, function: Any) -> None:
        object.__setattr__(module, name, MethodType(function, module))
        done.append((module, name))

    yield patch
    for module, name in done:
        object.__delattr__(module, name)


def test_real_conditions_pass(model: AnyText2, batch: Batch, conditions: Conditions) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert audit_conditions(model, batch, conditions) == []
    assert audit_control(model, conditions) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_untrained_teacher_passes_too(batch: Batch) -> None:
    """Zero convolutions make all maps zero; that is how a teacher begins, and no fault."""
    torch.manual_seed(1)
    fresh = build_model(load_model_config("tiny"))
    with torch.inference_mode():
        conditions = fresh.condition(batch, fresh.masked_latents(batch))
    assert audit_conditions(fresh, batch, conditions) == [] == audit_control(fresh, conditions)


def _packed(order: Callable[[list[int]], list[int]]) -> Callable[..., Any]:
    """encode_texts with the lines of the batch in another order."""

    def encode_texts(self: Any, captions: Any, lines_ND: torch.Tensor, n_lines: Any, names: Any) -> torch.Tensor:
        lines = lines_ND[order(list(range(len(lines_ND))))]
        return type(self).encode_texts(self, captions, lines, n_lines, names)

    return encode_texts


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (lambda rows: [0, *rows[:-1]], "reaches"),  # line 1 twice: the last line's embedding is lost
        (lambda rows: [rows[1], rows[0], *rows[2:]], "stands at token"),  # two lines of one sample exchanged
        (lambda rows: rows[::-1], "reaches another sample"),  # line by line instead of sample by sample
    ],
)
def test_an_embedding_at_the_wrong_line_is_found(
    model: AnyText2, batch: Batch, conditions: Conditions, patched: Any, order: Any, message: str
) -> None:
    patched(model.cond_stage_model, "encode_texts", _packed(order))
    findings = audit_conditions(model, batch, conditions)
    assert any(f.check == "line embedding" and message in f.message for f in findings), _said(findings)


def test_only_the_first_placeholder_replaced_is_found(
    model: AnyText2, batch: Batch, conditions: Conditions, patched: Any
) -> None:
    """The forerunner's tokens: only one placeholder was found, the other lines' embeddings were lost."""

    def encode_texts(self: Any, captions: Any, lines_ND: torch.Tensor, n_lines: Any, names: Any) -> torch.Tensor:
        firsts = [sum(n_lines[:row]) for row in range(len(n_lines))]
        single = [caption.replace("* , ", ", ", count - 1) for caption, count in zip(captions, n_lines, strict=True)]
        return type(self).encode_texts(self, single, lines_ND[firsts], [1] * len(n_lines), names)

    patched(model.cond_stage_model, "encode_texts", encode_texts)
    findings = audit_conditions(model, batch, conditions)
    lost = [f for f in findings if f.message == "reaches no token of the text caption"]
    assert len(lost) == sum(batch.n_lines) - batch.size, _said(findings)


def test_lines_of_faint_ink_are_found(model: AnyText2, batch: Batch, conditions: Conditions) -> None:
    """The forerunner divided glyphs of 0 and 1 by 255: every line reaches its placeholder, and says nothing."""
    assert audit_recognizer(model, batch, conditions.masked_latent) == []
    thin = copy.deepcopy(model)
    PLANTED["glyph_lines_thin"](thin)
    assert audit_conditions(thin, batch, thin.condition(batch, conditions.masked_latent)) == []
    findings = audit_recognizer(thin, batch, conditions.masked_latent)
    assert len(findings) == sum(batch.n_lines) > 0
    assert "values of -1.00 to -0.99, values of -1.00 to 1.00 in the batch" in _said(findings)
    blank = replace(batch, glyph_line=torch.zeros_like(batch.glyph_line))
    assert audit_recognizer(model, blank, conditions.masked_latent) == [], "a line that has no ink is no faint one"
    assert not model.text_predictor.backbone._forward_pre_hooks


def test_conditions_of_another_batch_are_found(model: AnyText2, batch: Batch, conditions: Conditions) -> None:
    other = replace(conditions, image_context=conditions.image_context.flip(0))
    assert "image_context: is not what the model makes" in _said(audit_conditions(model, batch, other))
    white = replace(conditions, glyph=torch.ones_like(conditions.glyph))
    assert "glyph: is not the batch's own: 100.0%" in _said(audit_conditions(model, batch, white))
    clipped = replace(conditions, position=conditions.position * 0)
    assert "position: is not the batch's own" in _said(audit_conditions(model, batch, clipped))
    broken = replace(conditions, text_context=conditions.text_context * float("inf"))
    assert "text_context: holds values that are not finite" in _said(audit_conditions(model, batch, broken))


def test_maps_that_follow_x_and_t_are_found(model: AnyText2, conditions: Conditions, patched: Any) -> None:
    """A WriteNet that is fed the noisy latent of the last call, as with fast_control switched off."""
    seen: list[torch.Tensor] = []

    def predict_noise(self: Any, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, control: Control) -> Any:
        seen[:] = [x.mean() + t.float().mean() / 1000]
        return type(self).predict_noise(self, x, t, context, control)

    def write(self: Any, conditions: Conditions) -> Control:
        maps = type(self).write(self, conditions)
        return tuple(level + seen[0] for level in maps) if seen else maps

    patched(model, "predict_noise", predict_noise)
    patched(model, "write", write)
    assert "WriteNet: map 0: depends on x_t or t" in _said(audit_control(model, conditions))


def test_a_writenet_that_is_given_x_and_t_is_found(model: AnyText2, conditions: Conditions) -> None:
    faulty = copy.deepcopy(model)
    PLANTED["writenet_sees_noise"](faulty)
    assert "WriteNet: input: is given x_t or t" in _said(audit_control(faulty, conditions))
    assert not model.control_model._forward_pre_hooks


def test_maps_changed_by_the_unet_are_found(model: AnyText2, conditions: Conditions, patched: Any) -> None:
    def predict_noise(self: Any, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, control: Control) -> Any:
        control[2].add_(1)
        return type(self).predict_noise(self, x, t, context, control)

    patched(model, "predict_noise", predict_noise)
    assert "WriteNet: map 2: was changed in place" in _said(audit_control(model, conditions))


# --- gradients ---


@pytest.fixture
def student(model: AnyText2, batch: Batch) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """A fresh LoRA (B is zero) on the tiny model, and a loss through all of it."""
    model = copy.deepcopy(model)
    wrapped = add_student(model, LoraSection(rank=4, alpha=4.0), seed=0)
    roles = Roles(wrapped)
    one = collate_first(batch)
    with torch.no_grad():
        conditions = model.condition(one, model.masked_latents(one))
    x = torch.randn(conditions.masked_latent.shape, generator=torch.Generator().manual_seed(2))

    def loss() -> torch.Tensor:
        eps = roles.model.predict_noise(x, torch.tensor([500]), conditions.image_context, roles.model.write(conditions))
        return eps.square().mean()

    return wrapped, loss


def collate_first(batch: Batch) -> Batch:
    """The batch's first sample alone."""
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return Batch(**{name: None if value is None else value[:1] for name, value in values.items()})


def test_a_fresh_lora_passes_and_is_left_as_it_was(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    wrapped, loss = student
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    a_gradients = torch.autograd.grad(
        loss(), [p for n, p in wrapped.named_parameters() if ".lora_A." in n], allow_unused=True
    )
    assert not any(g is not None and bool(g.any()) for g in a_gradients)  # what a naive audit would stop at
    assert audit_adapters(wrapped, loss) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in wrapped.state_dict().items())
    assert all(parameter.grad is None for parameter in wrapped.parameters())


def test_values_return_when_the_loss_fails(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    wrapped, _ = student
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}

    def fail() -> torch.Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        audit_adapters(wrapped, fail)
    assert all(torch.equal(before[name], tensor) for name, tensor in wrapped.state_dict().items())


def test_an_encoder_without_gradient_is_found(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    """As the reference UNet does it: the encoder under no_grad. Its LoRA never learns."""
    wrapped, loss = student
    unet = wrapped.get_base_model().model.diffusion_model  # type: ignore[operator]
    for block in unet.input_blocks:
        block.register_forward_hook(lambda module, inputs, output: output.detach())
    encoder = {n for n, _ in wrapped.named_parameters() if ".lora_" in n and "diffusion_model.input_blocks" in n}
    findings = audit_adapters(wrapped, loss)
    assert {f.where for f in findings} == encoder and encoder
    assert {f.message for f in findings} == {"gets no gradient from the loss"}


def test_a_writenet_computed_without_gradient_is_found(
    student: tuple[nn.Module, Callable[[], torch.Tensor]],
) -> None:
    wrapped, loss = student
    model = wrapped.get_base_model()  # type: ignore[operator]
    model.control_model.register_forward_hook(lambda module, inputs, maps: tuple(level.detach() for level in maps))
    assert {"control_model" in f.where for f in audit_adapters(wrapped, loss)} == {True}


def test_a_trainable_base_weight_is_found(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    wrapped, loss = student
    name, weight = next((n, p) for n, p in wrapped.named_parameters() if n.endswith("out.2.weight"))
    weight.requires_grad_(True)
    findings = audit_adapters(wrapped, loss)
    assert [(f.check, f.where) for f in findings] == [("frozen weight", name)]


def test_a_frozen_lora_tensor_is_found(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    wrapped, loss = student
    name, weight = next((n, p) for n, p in wrapped.named_parameters() if ".lora_A." in n)
    weight.requires_grad_(False)
    assert [(f.check, f.where) for f in audit_adapters(wrapped, loss)] == [("adapter", name)]


def test_a_loss_that_ignores_the_adapter_is_found(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    wrapped, loss = student
    eps = loss().detach()
    unused = next(p for p in wrapped.parameters() if p.requires_grad)
    assert _said(audit_adapters(wrapped, lambda: eps)) == "adapter: loss: depends on no LoRA tensor at all"
    assert len(audit_adapters(wrapped, lambda: unused.sum())) == len(_trained(wrapped)) - 1
    assert "adapter: ema: no LoRA tensor of this name" in _said(audit_adapters(wrapped, loss, adapter="ema"))


def _trained(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


class _Vanishing(nn.Module):
    """A gradient too small for half precision unless the loss is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.ModuleDict()
        self.to_q["lora_A"] = nn.ModuleDict({"student": nn.Linear(2, 2, bias=False, dtype=torch.float16)})
        self.layer = self.to_q["lora_A"]["student"]


def test_a_gradient_lost_in_half_precision_is_no_finding() -> None:
    holder = _Vanishing()
    x = torch.full((1, 2), 1e-4, dtype=torch.float16)

    def loss() -> torch.Tensor:
        return holder.layer(x).float().mean() * 1e-6

    weight = holder.layer.weight
    assert not torch.autograd.grad(loss(), weight)[0].any()
    assert audit_adapters(holder, loss) == []


def test_a_gradient_that_is_not_finite_is_found() -> None:
    holder = _Vanishing()

    def loss() -> torch.Tensor:
        return (holder.layer(torch.zeros(1, 2, dtype=torch.float16)).float().abs().sqrt()).mean()

    assert "its gradient is not finite" in _said(audit_adapters(holder, loss))


def test_audit_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: Batch) -> None:
    monkeypatch.chdir(tmp_path)
    audit_batch(batch)
    assert not list(tmp_path.iterdir())
