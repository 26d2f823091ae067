"""Compiled blocks equal the blocks as written, in value and gradient, whichever adapter is active."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from anytext2.model.layers import ResBlock, SpatialTransformer
from anytext2.model.unet import run_block
from distill.adapters.fused_linear import fuse_linear_layers
from distill.adapters.roles import without_adapters
from distill.compilation.blocks import BlockPrograms
from tests.helpers.models.parity import assert_same, gradients, normal, randomised

WIDTH, CONTEXT, TOKENS = 8, 6, 5


class Net(nn.Module):
    """Two equal transformers and a convolutional block."""

    def __init__(self, attnx: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SpatialTransformer(WIDTH, CONTEXT, 2, 2, attnx) for _ in range(2))
        self.res = ResBlock(WIDTH, WIDTH, WIDTH, 2)

    def forward(self, x: Tensor, context: Tensor, recompute: bool = False) -> Tensor:
        for block in self.blocks:
            x = run_block(block, recompute, x, context)
        return run_block(self.res, recompute, x, context[: len(x)].repeat(1, 2)[:, :WIDTH])


def adapted(attnx: bool = False) -> PeftModel:
    """With two adapters that are trained, of which `student` is active."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=r".*attn[12]x?\.to_(q|k|v|out\.0)")
    student = get_peft_model(Net(attnx), config, adapter_name="student")  # type: ignore[arg-type]
    student.add_adapter("average", config)
    student.set_adapter("student")
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("lora_" in name)
    randomised(student)
    fuse_linear_layers(student)
    return student


def choose(student: PeftModel, adapter: str) -> None:
    active = [adapter]
    for module in student.modules():
        if hasattr(module, "_active_adapter"):
            module._active_adapter = active


def inputs(height: int = 4) -> tuple[Tensor, Tensor]:
    return normal(2, WIDTH, height, 4).requires_grad_(), normal(2 * TOKENS, CONTEXT, seed=1)


def step(student: PeftModel, height: int = 4, recompute: bool = False) -> list[Tensor]:
    """Value and gradients of one pass."""
    x, context = inputs(height)
    y = student(x, context, recompute)
    trained = [p for p in student.parameters() if p.requires_grad]
    found = torch.autograd.grad((y * normal(*y.shape, seed=2)).sum(), [x, *trained], allow_unused=True)
    return [y.detach(), *(gradient for gradient in found if gradient is not None)]


def assert_all_roles_agree(
    programs: BlockPrograms, student: PeftModel, teacher: nn.Module, heights: tuple[int, ...], tolerance: float
) -> None:
    """For each adapter and none, each picture size, stored and recomputed activations."""
    for height in heights:
        for adapter in ("student", "average", "student"):
            choose(student, adapter)
            expected = step(student, height)
            for recompute in (False, True):
                with programs.active():
                    found = step(student, height, recompute)
                assert len(found) > 2
                assert_same(found, expected, tolerance)
        with torch.inference_mode():
            given = [t.detach() for t in inputs(height)]
            plain = teacher(*given)
            with programs.active():
                assert_same([teacher(*given)], [plain], tolerance)


def compare(backend: str, tolerance: float, heights: tuple[int, ...], attnx: bool) -> tuple[int, int]:
    """Numbers of programs, and of compilations."""
    student = adapted(attnx)
    teacher = without_adapters(student.get_base_model())
    compiled: list[Any] = []

    def count(module: Any, example: Any) -> Any:
        compiled.append(module)
        return torch._dynamo.lookup_backend(backend)(module, example)

    programs = BlockPrograms(pytest.fail, count)
    assert programs.compile([student, teacher, student]) == 5
    assert_all_roles_agree(programs, student, teacher, heights, tolerance)
    choose(student, "student")
    before = len(compiled)
    with programs.active():
        step(student)
    assert len(compiled) == before, "nothing is compiled a second time"
    return programs.count, len(compiled)


@pytest.mark.heavy
def test_all_roles_agree_and_equal_blocks_share_a_program() -> None:
    """Student and teacher have a transformer and a ResBlock each; the student's transformer has two adapters."""
    assert compare("aot_eager", 1e-12, heights=(4,), attnx=False) == (4, 5)


@pytest.mark.slow
def test_all_roles_agree_in_generated_code() -> None:
    assert compare("inductor", 1e-10, heights=(4, 6), attnx=True) == (8, 10)


def broken(module: Any, example: Any) -> Any:
    raise RuntimeError("no C compiler\nand more")


def without_gradient(module: Any, example: Any) -> Any:
    return lambda *tensors: [y.detach() for y in module(*tensors)]


def with_other_values(module: Any, example: Any) -> Any:
    return lambda *tensors: [y + y.abs().max() for y in module(*tensors)]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"backend": without_gradient}, r"ResBlock does not compile \(its gradients are 100% away from .*"),
        ({"backend": with_other_values}, r"ResBlock does not compile \(its values are \d+% away from .*"),
        ({"backend": broken}, r"ResBlock does not compile \(.*no C compiler.*\); what is not compiled yet"),
        ({"backend": "eager", "limit": 1}, "1 programs are compiled, more shapes of blocks"),
    ],
)
def test_what_is_not_compiled_runs_eagerly_and_is_said_once(options: dict[str, Any], line: str) -> None:
    block, lines = randomised(ResBlock(WIDTH, WIDTH, WIDTH, 2)), list[str]()
    given = [(normal(2, WIDTH, height, 4), normal(2, WIDTH, seed=1)) for height in (4, 6)]
    expected = [gradients([block(*tensors)], list(block.parameters())) for tensors in given]
    programs = BlockPrograms(lines.append, **options)
    programs.compile([block])
    for recompute in (False, True):
        for tensors, wanted in zip(given, expected, strict=True):
            with programs.active():
                assert_same(gradients([run_block(block, recompute, *tensors)], list(block.parameters())), wanted, 1e-12)
    assert len(lines) == 1 and re.fullmatch(f"train.compile=blocks: {line} runs eagerly", lines[0]), lines
    assert programs.count <= 1


def test_nothing_is_compiled_outside_of_a_micro_step() -> None:
    student = adapted()
    names, state = [type(m).__name__ for m in student.modules()], list(student.state_dict())
    programs = BlockPrograms(pytest.fail, broken)
    programs.compile([student])
    step(student)
    assert programs.count == 0 and list(student.state_dict()) == state
    assert [type(m).__name__ for m in student.modules()] == names
    assert sum(isinstance(m, SpatialTransformer) for m in student.modules()) == 2
