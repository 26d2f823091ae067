"""Which fast path a run gets, and what is said where it gets none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distill.adapters.lora import AdapterConfig, add_student
from distill.adapters.roles import AdapterRoles
from distill.compilation import setup
from distill.compilation.blocks import BlockPrograms
from distill.compilation.graphs import GraphedCalls
from distill.compilation.intercept import Both
from distill.compilation.setup import make_compilation, release_networks
from distill.config.schema import ModelConfig, Recipe, TrainConfig
from distill.runtime.world import World
from tests.helpers.models.mini_model import mini_model
from tests.helpers.models.rerun import Rerun

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def student() -> Any:
    return add_student(mini_model(), AdapterConfig(rank=2, alpha=2), seed=0)


def recipe(mode: str, dropout: float = 0.0, recompute: str = "none", **objective: Any) -> Recipe:
    return Recipe(
        train=TrainConfig(compile=mode),
        lora=AdapterConfig(dropout=dropout),
        model=ModelConfig(activation_checkpointing=recompute),
        objective={"name": "consistency", **objective},
    )


ATTENTION = {"terms": {"attention_mass": {"weight": 0.1}}}


@pytest.mark.parametrize(
    ("given", "device", "kind", "line"),
    [
        (recipe("none"), GPU, setup.Switch, ""),
        (recipe("graphs"), CPU, setup.Switch, "train.compile=graphs: there are no CUDA graphs on a cpu; networks run"),
        (
            recipe("blocks", dropout=0.1),
            CPU,
            setup.Switch,
            "train.compile=blocks: lora.dropout=0.1 draws other numbers",
        ),
        (recipe("blocks", recompute="all"), CPU, BlockPrograms, ""),
        (recipe("blocks", **ATTENTION), CPU, BlockPrograms, "train.compile=blocks: the WriteNet runs eagerly, because"),
        (recipe("graphs"), GPU, GraphedCalls, ""),
        (recipe("blocks+graphs"), GPU, Both, ""),
        (recipe("blocks+graphs"), CPU, BlockPrograms, "train.compile=blocks+graphs: there are no CUDA graphs on a cpu"),
        (
            recipe("blocks+graphs", dropout=0.1),
            CPU,
            setup.Switch,
            "train.compile=blocks+graphs: there are no|train.compile=blocks+graphs: lora.dropout=0.1",
        ),
        (
            recipe("graphs", dropout=0.1, recompute="all"),
            GPU,
            GraphedCalls,
            "train.compile=graphs: the student is not captured with lora.dropout and model.activation_checkpointing",
        ),
    ],
)
def test_what_a_run_gets(
    student: Any,
    given: Recipe,
    device: torch.device,
    kind: type,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setup, "CudaCapture", Rerun)
    roles = AdapterRoles(student)
    assert type(make_compilation(given, roles, World(0, 0, 2, device))) is kind
    release_networks(roles)
    lines = capsys.readouterr().out.splitlines()
    expected = [part for part in line.split("|") if part]
    assert [found[: len(start)] for found, start in zip(lines, expected, strict=True)] == expected
    make_compilation(given, roles, World(1, 1, 2, device))
    release_networks(roles)
    assert not capsys.readouterr().out


def test_the_writenet_is_left_alone_where_its_attention_is_recorded(student: Any) -> None:
    roles = AdapterRoles(student)
    assert len(setup.step_networks(roles)) == 4
    writers = [roles.model.control_model, roles._teacher.control_model]
    assert not {id(n) for n in setup.step_networks(roles, records=True)} & {id(w) for w in writers}


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train.compile='fast': one of none, blocks, graphs, blocks\+graphs"):
        TrainConfig(compile="fast")
