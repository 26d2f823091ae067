"""Settings of the earlier scripts become recipes that mean the same."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.config.recipes import load_recipe
from distill.config.schema import Recipe
from distill.losses.terms import TERMS
from distill.migration.convert import PLAIN, Migrated, migrate
from distill.migration.old_files import is_old_file, read_old
from distill.migration.table import BY_NAME, KEYS, VERSIONS, YAML
from distill.objectives import OBJECTIVES
from tests.helpers.old_settings import V1, write_v2_4
from tests.helpers.paths import ROOT

SCRIPT = "train_lcm_anytext_v2"


def of_command(*words: str) -> Migrated:
    return migrate(read_old(words), "mine")


def loaded(made: Migrated, folder: Path) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.recipe))
    return load_recipe(path)


def test_the_yaml_file_of_v2_4_keeps_its_meaning(tmp_path: Path) -> None:
    made = migrate(read_old([str(write_v2_4(tmp_path))]), "mine")
    recipe = loaded(made, tmp_path)
    assert made.gpus == 2 and made.ds_config == "zero2.json"
    assert (recipe.train.micro_batch, recipe.train.effective_batch) == (4, 4 * 4 * 2)
    assert (recipe.train.schedule, recipe.train.warmup_steps) == ("cosine", 500)
    wanted = {"name": "consistency", "teacher_interval": 20, "solver_steps": 50, "w_min": 4.0, "w_max": 14.0}
    assert wanted.items() <= recipe.objective.items()
    assert recipe.data.split == [0.98, 0.01, 0.01] and len(recipe.data.sources) == 3
    assert recipe.log.preview_every == 500 and recipe.model.config == "sd15"
    assert not made.warnings


def test_the_command_line_of_v1_keeps_its_meaning(tmp_path: Path) -> None:
    made = of_command(V1)
    recipe = loaded(made, tmp_path)
    assert (recipe.train.micro_batch, recipe.train.effective_batch, recipe.train.max_steps) == (12, 48, 50000)
    wanted = {"name": "x0_regression", "grid": "coarse", "solver_steps": 8, "w_min": 6.5, "w_max": 6.5}
    assert wanted.items() <= recipe.objective.items()
    assert recipe.data.sources == ["demodataset/annotations/demo_data.json"] and recipe.lora.targets == "paper"


@pytest.mark.parametrize(("script", "objective"), [("", "x0_regression"), ("_2", "x0_regression")])
def test_defaults_are_those_of_the_script(script: str, objective: str, tmp_path: Path) -> None:
    made = of_command("accelerate", "launch", "--num_processes", "3", f"{SCRIPT}{script}.py", "--seed=7")
    recipe = loaded(made, tmp_path)
    assert (recipe.train.learning_rate, recipe.train.effective_batch, recipe.seed) == (5e-5, 1 * 8 * 3, 7)
    assert recipe.objective["name"] == objective and recipe.objective["w_max"] == 6.5
    assert any("train.effective_batch=24" in line for line in made.warnings)
    assert any(line.startswith("cfg_scale=7.5 -> objective.w_min=6.5") for line in made.changed)


def test_terms_of_v2_3_and_an_adapter_to_go_on_from(tmp_path: Path) -> None:
    words = "--loss_grad_weight 0 --resume_path old/checkpoint-2000 --resume_add_steps 3000 --learning_rate 5e-4"
    made = of_command(f"{SCRIPT}_3.py", *words.split(), "--lr_warmup_steps", "500", "--no_streaming")
    recipe = loaded(made, tmp_path)
    assert recipe.objective["terms"] == {"focal_frequency": {"weight": 0.05, "alpha": 1.0, "windowed": False}}
    assert recipe.lora.weights == "old/checkpoint-2000" and recipe.train.max_steps == 3000
    assert recipe.train.warmup_steps == 0  # as without a schedule
    assert any("0.0005" in line for line in made.warnings)
    assert any(line.startswith("no_streaming (") for line in made.dropped)


def test_lists_of_files_are_expanded(tmp_path: Path) -> None:
    (tmp_path / "paths.list").write_text("# all\na.json\n\nb.json\n")
    made = of_command(f"{SCRIPT}_4.py", "--dataset_json", f"{tmp_path / 'paths.list'},c.json", "none.list")
    assert made.recipe["data"]["sources"] == ["a.json", "b.json", "c.json", "none.list"]
    assert any("none.list: no such list" in line for line in made.warnings)


def test_a_yaml_file_started_by_a_command_takes_the_command_s_gpus(tmp_path: Path) -> None:
    path = write_v2_4(tmp_path)
    words = ["accelerate", "launch", "--num_processes", "4", "student_model_v2/launch_from_yaml.py", "--config"]
    assert migrate(read_old([*words, str(path)]), "mine").recipe["train"]["effective_batch"] == 64


def test_keys_that_no_script_had_are_listed_with_the_nearest(tmp_path: Path) -> None:
    path = write_v2_4(tmp_path, ("lcm_step: 1", "lcm_stepp: 1"), ("seed: 42", "zzzz: 42"))
    assert read_old([str(path)]).unknown == {"lcm_stepp": "lcm_step", "zzzz": ""}
    dropped = of_command(f"{SCRIPT}_2.py", "--w_min", "3").dropped
    assert dropped == ["w_min (a key of v2_4, not of v2_2)"]


@pytest.mark.parametrize(
    ("content", "script"),
    [
        ("train: {train_batch_size: 2}", "v2"),
        ("train: {train_batch_size: 2, use_optimized: true}", "v2_2"),
        ("train: {loss_ffl_weight: 0.1}", "v2_3"),
        ("train: {lcm_step: 2}", "v2_4"),
    ],
)
def test_the_script_follows_from_the_keys(content: str, script: str, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(content)
    assert read_old([str(tmp_path / "old.yaml")]).script == script


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("a: 1", "neither a recipe nor a YAML file of the earlier scripts"),
        ("[1, 2]", "neither a recipe nor"),
        ("model: {config: sd15}\ntrain: {learning_rate: 1.0e-4}", "neither a recipe nor"),
        ("name: x\ntrain: {max_steps: 3}", "has sections of a recipe already"),
        ("train: {train_batch_size: four}", "train_batch_size='four': a whole number is needed"),
        ("train: {train_batch_size: [1, 2]}", "train_batch_size='1 2': a whole number is needed"),
        ("train: {use_mock_dataset: maybe}", "use_mock_dataset='maybe': true or false is needed"),
        ("train: {train_script: x.py}", "train_script=x.py: not one of the earlier scripts"),
        ("train: {mixed_precision: fp8}", "mixed_precision=fp8: one of fp16, bf16, no"),
        ("train: {w_min: 0.5, w_max: 3}", "guidance scale 0.5 (cfg_scale or w_min): must be at least 1"),
        ("train: {lcm_step: 1, num_inference_steps: 30}", "num_inference_steps=30: must divide 1000"),
        ("train: {lr_scheduler: linear}", "lr_scheduler=linear: one of none, warmup_cosine"),
        ("{", "not valid YAML"),
    ],
)
def test_what_makes_no_recipe_is_said_in_one_line(content: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(content)
    with pytest.raises(ValueError) as raised:
        migrate(read_old([str(path)]), "mine")
    assert error in str(raised.value) and "\n" not in str(raised.value)


def test_other_commands_are_refused() -> None:
    with pytest.raises(ValueError, match="neither a YAML file nor a command of the earlier scripts"):
        read_old(["python", "train.py"])
    with pytest.raises(ValueError, match="No such file"):
        read_old(["none.yaml"])


@pytest.mark.parametrize("path", sorted((ROOT / "launch/recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_no_shipped_recipe_is_taken_for_an_old_file(path: Path) -> None:
    assert not is_old_file(yaml.safe_load(path.read_text()))


def test_a_command_with_an_old_file_names_the_command_that_moves_it(tmp_path: Path) -> None:
    path = write_v2_4(tmp_path)
    with pytest.raises(ValueError, match=r"v4.yaml: this is an old file, .*launch/migrate.py .*v4.yaml$"):
        load_recipe(path)


def known_keys() -> set[str]:
    """All recipe keys, with those of every objective and term."""

    def of(value: Any, prefix: str) -> set[str]:
        found: set[str] = set()
        for field in fields(value):
            inner = getattr(value, field.name)
            found |= {f"{prefix}{field.name}"}
            found |= of(inner, f"{prefix}{field.name}.") if hasattr(inner, "__dataclass_fields__") else set()
        return found

    keys = of(Recipe(), "") | {"objective.name"}
    keys |= {f"objective.{field.name}" for kind in OBJECTIVES.values() for field in fields(kind.Config)}
    return keys | {f"objective.terms.{n}.{f.name}" for n, term in TERMS.items() for f in fields(term.Config)}


def test_the_table_is_the_code_s() -> None:
    """Every recipe key of the table exists, and every old key that is set is said to be."""
    assert len(BY_NAME) == len(KEYS) == 85
    known = known_keys()
    for key in KEYS:
        assert set(key.new) <= known, key.name
        assert set(key.scripts) <= {*VERSIONS, *YAML} and (key.new or key.note), key.name
    for name, new in PLAIN.items():
        assert new in BY_NAME[name].new, name
