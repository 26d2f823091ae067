"""launch/plan.py: what it prints, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distill.config.schema import Recipe
from distill.planning.plan import Machine, Plan, make_plan
from launch import plan, train
from tests.helpers.models.mini_model import write_mini

Captured = pytest.CaptureFixture[str]


@pytest.mark.heavy
def test_a_plan_says_whether_it_fits(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ["demo.yaml", *write_mini(tmp_path), "data.options.resolution=64"]
    words = [*recipe, "--gpus", "2", "--samples-per-second", "8"]
    made: list[Plan] = []

    def make_once(recipe: Recipe, machine: Machine) -> Plan:
        made[:] = made or [make_plan(recipe, machine)]
        return replace(made[0], machine=machine)

    monkeypatch.setattr(plan, "make_plan", make_once)
    assert plan.main([*words, "--card", "rtx3090"]) == 0
    said = capsys.readouterr().out
    assert "48 = 8 x 3 x 2 GPUs" in said and "  as measured: 8 samples/s" in said
    assert "6.0 s an update, 0.1 hours for 40 updates" in said
    assert said.splitlines()[-1].startswith("fits: about 1.") and " of 24 GiB on each GPU" in said
    assert plan.main([*words, "--memory", "0.5"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("does not fit: about 1.")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("demo.yaml --memory 0", "--memory 0: must be the GiB of one GPU, as in 24"),
        ("demo.yaml --memory nan", "--memory nan: must be the GiB"),
        ("demo.yaml --card mine", "--card mine: known are rtx3090, rtx4090"),
        ("demo.yaml --card mine --tflops 10", "of others give --memory and --tflops"),
        ("demo.yaml --tflops 0", "--tflops 0: must be above 0"),
        ("demo.yaml --utilisation 2", "--utilisation 2: must be a share"),
        ("demo.yaml --gpus 0", "--gpus 0: must be at least 1"),
        ("demo.yaml --gpus 5", "train.effective_batch=48 is not micro_batch=8 x ranks=5"),
        ("demo.yaml --pictures 0", "--pictures 0: must be at least 1"),
        ("demo.yaml --samples-per-second -1", "--samples-per-second -1: must be above 0"),
        ("demo.yaml objective.terms.ocr_ctc.weight=0.1", "there is no plan for it"),
        ("none.yaml", "none.yaml: no such file"),
        ("demo.yaml train.stepz=1", "train.stepz"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(words: str, error: str, capsys: Captured) -> None:
    assert plan.main(words.split()) == 2
    said = capsys.readouterr()
    assert error in said.err and said.err.count("\n") == 1 and not said.out


def test_only_the_main_rank_on_a_gpu_warns(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    class Place:
        def __init__(self, type: str, is_main: bool) -> None:
            self.type, self.is_main, self.device, self.size = type, is_main, self, 3

    class Properties:
        total_memory = 7

    monkeypatch.setattr(train.torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(train, "memory_warning", lambda recipe, gpus, total: f"{gpus} {total}")
    recipe: object = None
    for place in (Place("cpu", True), Place("cuda", False), Place("cuda", True)):
        train.warn_of_memory(recipe, place)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "warning: 3 7\n"
