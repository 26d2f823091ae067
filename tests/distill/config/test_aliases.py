"""Old spellings of recipe keys: read as the new ones, named once, and refused beside the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.config import aliases
from distill.config.aliases import ALIASES
from distill.config.recipes import DEFAULT_RECIPE, dump_recipe, load_recipe
from distill.config.schema import Recipe
from distill.objectives.consistency import ConsistencyConfig
from distill.objectives.phased import PhasedConfig

RECIPE = """\
model: {planted: glyph_lines_thin}
objective: {name: phased, phases: 4, lcm_step: 1000, edges_only: true}
watchdog: {tree: 20}
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "_noticed", set())
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def notices(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_file_of_old_spellings_is_the_file_of_new_ones(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(old)
    assert notices(capsys) == [f"recipe: {key} is now {new}" for key, new in ALIASES.items()]
    new = old.with_name("new.yaml")
    new.write_text(RECIPE.replace("planted", "fault_injection").replace("lcm_step", "teacher_interval"))
    new.write_text(new.read_text().replace("tree", "max_memory"))
    assert load_recipe(new) == recipe
    assert recipe.model.fault_injection == "glyph_lines_thin" and recipe.watchdog.max_memory == 20
    assert recipe.objective_config == PhasedConfig(teacher_interval=1000, phases=4, edges_only=True)
    dump_recipe(recipe, old.with_name("run.yaml"))
    assert not any(key.rpartition(".")[2] + ":" in old.with_name("run.yaml").read_text() for key in ALIASES)
    assert load_recipe(old.with_name("run.yaml")) == recipe
    assert notices(capsys) == []


@pytest.mark.parametrize("override", ["objective.lcm_step=40", "objective={name: consistency, lcm_step: 40}"])
def test_an_override_in_the_old_spelling(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        recipe = load_recipe(None, [override])
        assert recipe.objective_config == ConsistencyConfig(teacher_interval=40)
        assert recipe.objective == {"name": "consistency", "teacher_interval": 40}
    assert notices(capsys) == ["recipe: objective.lcm_step is now objective.teacher_interval"]


def test_an_override_replaces_the_file_s_value_in_either_spelling(old: Path) -> None:
    for key in ("objective.lcm_step", "objective.teacher_interval"):
        assert load_recipe(old, [f"{key}=100"]).objective["teacher_interval"] == 100
    new = load_recipe(DEFAULT_RECIPE, ["objective.lcm_step=100"])
    assert new.objective["teacher_interval"] == 100 and "lcm_step" not in new.objective


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("objective: {name: phased, lcm_step: 20, teacher_interval: 20}", []),
        ("name: x", ["objective.lcm_step=20", "objective.teacher_interval=20"]),
    ],
)
def test_both_spellings_at_once_are_an_error(old: Path, text: str, overrides: list[str]) -> None:
    old.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="objective.lcm_step is the old name of objective.teacher_interval") as caught:
        load_recipe(old, overrides)
    assert "\n" not in str(caught.value)


def test_an_impossible_value_is_named_by_the_new_spelling(old: Path) -> None:
    with pytest.raises(ValueError, match="teacher_interval = 0: must be at least 1 timestep"):
        load_recipe(old, ["objective.lcm_step=0"])
    with pytest.raises(ValueError, match=r"model.fault_injection='typo': one of glyph_page_all_ink"):
        load_recipe(old, ["model.planted=typo"])


def test_only_rank_0_prints_the_notice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert load_recipe(None, ["objective.lcm_step=40"]).objective["teacher_interval"] == 40
    assert notices(capsys) == []


def test_every_new_spelling_is_a_key(old: Path) -> None:
    recipe = load_recipe(old)
    for new in ALIASES.values():
        section, key = new.split(".")
        holder = recipe.objective_config if section == "objective" else getattr(recipe, section)
        assert hasattr(holder, key), new
    assert Recipe().model.fault_injection == ""
