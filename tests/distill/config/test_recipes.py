"""Recipes: what they resolve to, and that every mistake in one is a single line that names it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from distill.adapters.roles import EMA, FAKE_SCORE
from distill.config.recipes import DEFAULT_RECIPE, dump_recipe, load_recipe
from distill.config.schema import Recipe, TrainConfig, ema_decay, learning_rate
from distill.diffusion.samplers import SAMPLERS
from distill.losses.terms.edges import GradientConfig
from distill.objectives import OBJECTIVES
from distill.objectives.base import LCM_STUDENT, FullWeightObjective
from distill.objectives.consistency import ConsistencyConfig
from distill.objectives.denoise import DenoiseConfig
from distill.objectives.phased import PhasedConfig

RECIPES = sorted(DEFAULT_RECIPE.parent.glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fault(path: Path, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message and ": None" not in message, message
    return message


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_survives_being_written(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.objective["name"] in OBJECTIVES
    dump_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_the_recipes_that_the_documents_name_are_there() -> None:
    assert {"demo", "rtx4090x3", "rtx4090x3_2step", "tiny_teacher"} <= {path.stem for path in RECIPES}


def test_overrides_come_after_the_file_and_the_file_after_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "train: {max_steps: 7, micro_batch: 2}\nobjective: {name: consistency, w_min: 3}")
    recipe = load_recipe(path, ["train.micro_batch=3", "data.sources=[a.json,b.json]", "objective.w_max=4", "name=a=b"])
    assert (recipe.train.max_steps, recipe.train.micro_batch, recipe.train.effective_batch) == (7, 3, 48)
    assert recipe.data.sources == ["a.json", "b.json"] and recipe.name == "a=b"
    assert recipe.run_dir == Path("runs/a=b")
    assert recipe.objective_config == ConsistencyConfig(w_min=3.0, w_max=4.0)


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "")) == Recipe()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nam: x", [": nam: no such key, nearest is name", "known there: name, run_root"]),
        ("train: {stepz: 3}", ["train.stepz", "nearest is train.max_steps", "known there: max_steps"]),
        ("data: {options: {resolutoin: 128}}", ["data.options.resolutoin", "known there: resolution"]),
        (
            "objective: {name: consistency, wmin: 3}",
            ["objective.wmin", "nearest is objective.w_min", "known there: name, loss,", "w_min, w_max"],
        ),
        (
            "objective: {name: nope}",
            ["objective.name='nope'", "consistency, phased, trajectory, distribution_matching, x0_regression"],
        ),
        ("train: {max_steps: abc}", ["train.max_steps", "'abc'", "Integer"]),
        ("train: {max_steps: 1.5}", ["train.max_steps", "1.5"]),
        ("train: 3", ["train:", "3"]),
        ("objective: 3", ["objective", "int"]),
        ("objective: {name: consistency, w_min: big}", ["w_min", "'big'", "Float"]),
        ("data: {sources: a.json}", ["data.sources"]),
        ("data: {options: {font_hint_area: [1]}}", ["data.options.font_hint_area", "length 1"]),
        ("name: ${bad}", ["name", "bad"]),
        ("- 1", ["a mapping"]),
        ("a: [", ["not valid YAML", "line 2"]),
        ("name: a\nname: b", ["not valid YAML", "duplicate key name"]),
    ],
)
def test_a_recipe_that_cannot_be_read_names_file_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    path = written(tmp_path, text)
    message = fault(path)
    if not text.startswith("objective: {"):  # of the objective's options, the objective is named
        assert str(path) in message
    assert all(word in message for word in words), message


def test_a_missing_recipe_names_those_that_ship(tmp_path: Path) -> None:
    message = fault(tmp_path / "nowhere.yaml")
    assert "nowhere.yaml: no such file" in message and "rtx4090x3.yaml" in message
    assert "no such file" in fault(tmp_path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_steps", ["key=value"]),
        ("train.max_steps=abc", ["train.max_steps", "'abc'"]),
        ("train.max_steps=", ["train.max_steps"]),
        ("train.stepz=1", ["train.stepz", "known there"]),
        ("=3", ["=3", "known there"]),
        ("resolution=256", ["nearest is data.options.resolution"]),
        ("train.lr=1", ["nearest is train.learning_rate"]),
        ("lora.r=8", ["nearest is lora.rank"]),
        ("seed.x=3", ["seed.x: no such key, nearest is seed; seed is a single value"]),
        ("objective.terms.gradeint.weight=1", ["nearest is objective.terms.gradient"]),
        ("train=3", ["train"]),
        ("train.betas.0=0.8", ["train.betas"]),
        ("[x", ["'[x'", "key=value"]),
        ("[x=1", ["'[x=1'", "YAML"]),
        ("name=[x", ["'name=[x'", "YAML", "expected"]),
        ("train.betas=[0.9", ["'train.betas=[0.9'", "YAML"]),
        ("name={a: b", ["YAML"]),
        ("name='", ["YAML"]),
        ("name=${x", ["YAML"]),
        ("objective.foo=1", ["objective", "foo"]),
    ],
)
def test_an_override_that_cannot_be_read_is_quoted(override: str, words: list[str]) -> None:
    message = fault(DEFAULT_RECIPE, "seed=3", override)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("given", "meant"),
    [("true", "all"), ("false", "none"), ("True", "all"), ("all", "all"), ("none", "none"), ("selective", "selective")],
)
def test_recomputation_has_three_settings_and_two_older_spellings(given: str, meant: str, tmp_path: Path) -> None:
    by_override = load_recipe(DEFAULT_RECIPE, [f"model.activation_checkpointing={given}"])
    by_file = load_recipe(written(tmp_path, f"model: {{activation_checkpointing: {given}}}"), [])
    assert by_override.model.activation_checkpointing == by_file.model.activation_checkpointing == meant
    message = fault(DEFAULT_RECIPE, "model.activation_checkpointing=some")
    assert "model.activation_checkpointing='some': one of none, selective, all" in message


def test_all_unknown_keys_are_named_at_once_each_with_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "trian: {max_steps: 3}\ndata: {options: {ink_treshold: 0.5}}\nobjective: {wmin: 2}")
    message = fault(path, "max_steps=4", "seed=3", "train.batch=2")
    for key, nearest, where in (
        ("trian", "train", f"--config {path}"),
        ("data.options.ink_treshold", "data.options.ink_threshold", f"--config {path}"),
        ("objective.wmin", "objective.w_min", f"--config {path}"),
        ("max_steps", "train.max_steps", "override max_steps=4"),
        ("train.batch", "train.micro_batch", "override train.batch=2"),
    ):
        assert f"{key}, nearest is {nearest} ({where})" in message, message
    assert message.startswith("5 keys") and "seed" not in message


def test_an_option_belongs_to_the_objective_before_or_after_an_override() -> None:
    recipe = load_recipe(DEFAULT_RECIPE, ["objective.phases=2", "objective.name=consistency"])
    assert "phases" not in recipe.objective  # left with the objective that has it
    assert load_recipe(None, ["objective.phases=2", "objective.name=phased"]).objective["phases"] == 2
    assert "objective.phases: no such key" in fault(DEFAULT_RECIPE, "objective.name=consistency", "objective.phases=2")


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("train.learning_rate=0", "train.learning_rate=0.0"),
        ("train.learning_rate=nan", "train.learning_rate=nan"),
        ("train.schedule=linear", "train.schedule='linear'"),
        ("train.max_steps=0", "train.max_steps=0"),
        ("train.warmup_steps=-1", "train.warmup_steps=-1"),
        ("train.betas=[0.9]", "train.betas=[0.9]"),
        ("train.betas=[0.9,1.0]", "train.betas=[0.9, 1.0]"),
        ("train.ema_decay=1.0", "train.ema_decay=1.0"),
        ("train.min_lr_ratio=2", "train.min_lr_ratio=2.0"),
        ("train.weight_decay=-0.1", "train.weight_decay=-0.1"),
        ("train.max_grad_norm=nan", "train.max_grad_norm=nan"),
        ("train.threads=-1", "train.threads=-1"),
        ("checkpoint.save_steps=-1", "checkpoint.save_steps=-1"),
        ("checkpoint.keep=0", "checkpoint.keep=0"),
        ("log.every=0", "log.every=0"),
        ("log.preview_every=-1", "log.preview_every=-1"),
        ("data.workers=-1", "data.workers=-1"),
        ("data.max_unreadable=7", "data.max_unreadable=7.0"),
        ("data.options.resolution=30", "resolution: 30"),
        ("data.options.mask_img_prob=2", "mask_img_prob: 2.0"),
        ("lora.rank=0", "lora.rank=0"),
        ("lora.alpha=0", "lora.alpha=0"),
        ("lora.kind=loha", "lora.kind='loha': one of lora, rslora, dora"),
        ("lora.dropout=1", "lora.dropout=1.0"),
        ("objective.w_max=0.5", "w_max = 0.5"),
        ("name=''", "name=''"),
    ],
)
def test_impossible_values_are_named_before_anything_starts(override: str, field: str) -> None:
    assert field in fault(DEFAULT_RECIPE, override)


def test_the_production_recipes_draw_as_the_official_checkpoint_was_trained() -> None:
    like = {path.stem for path in RECIPES if load_recipe(path).data.options.like_reference}
    assert like == {"rtx4090x3", "rtx4090x3_2step", "teacher_sd15"}


def test_the_recogniser_is_not_taught_by_the_references_drawings() -> None:
    (recipe,) = [path for path in RECIPES if path.stem == "tiny_recognizer"]
    with pytest.raises(ValueError, match="data.options.like_reference=true: objective recognize"):
        load_recipe(recipe, ["data.options.like_reference=true"])


def test_learning_rate_warms_up_and_stays() -> None:
    train = TrainConfig(learning_rate=2.0, warmup_steps=4, max_steps=10)
    rates = [learning_rate(train, update) for update in range(10)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_learning_rate_follows_half_a_cosine_to_its_least_value() -> None:
    train = TrainConfig(learning_rate=1.0, warmup_steps=2, max_steps=12, schedule="cosine", min_lr_ratio=0.2)
    assert [learning_rate(train, update) for update in (0, 1, 2)] == [0.5, 1.0, 1.0]
    for update in range(2, 12):
        expected = 0.2 + 0.8 * math.cos(math.pi / 2 * (update - 2) / 10) ** 2  # cos^2 of half the angle
        assert learning_rate(train, update) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(train, 12) == learning_rate(train, 40) == pytest.approx(0.2)


def test_without_warm_up_the_first_update_has_the_full_rate() -> None:
    assert learning_rate(TrainConfig(learning_rate=3.0, schedule="cosine"), 0) == 3.0


def test_the_average_s_memory_grows_to_its_decay() -> None:
    train = TrainConfig(ema_decay=0.99)
    assert [ema_decay(train, update) for update in (0, 8, 90)] == [0.1, 0.5, 0.91]
    assert ema_decay(train, 2000) == 0.99
    # After 100 updates almost nothing of the first weights is left; a constant 0.99 would keep 37 % of them.
    assert math.prod(ema_decay(train, update) for update in range(100)) < 1e-10


@pytest.mark.parametrize(
    ("objective", "steps"),
    [("{name: consistency}", 4), ("{name: phased, phases: 2}", 4), ("{name: phased, phases: 3}", 3)],
)
def test_where_nothing_is_said_a_student_is_drawn_in_steps_that_it_has_learned(objective: str, steps: int) -> None:
    recipe = load_recipe(DEFAULT_RECIPE, [f"objective={objective}", "log.preview_every=0"])
    assert recipe.student.default_steps(recipe.eval.steps) == steps


def test_a_whole_phase_is_taken_by_phased_alone() -> None:
    recipe = load_recipe(DEFAULT_RECIPE)
    assert recipe.objective_config == PhasedConfig(
        teacher_interval="phase", phases=4, teacher_steps=2, edges_only=True, w_min=1.0, w_max=1.0
    )
    # Another objective on the command line takes over what it can take.
    other = load_recipe(DEFAULT_RECIPE, ["objective.name=consistency"]).objective_config
    assert other == ConsistencyConfig(teacher_steps=2, w_min=1.0, w_max=1.0)
    assert "teacher_interval" in fault(DEFAULT_RECIPE, "objective.name=consistency", "objective.teacher_interval=phase")
    message = fault(DEFAULT_RECIPE, "objective.teacher_interval=half")
    assert "teacher_interval = 'half': choose a number of timesteps" in message and "'phase', a whole phase" in message
    assert "teacher_interval" in fault(DEFAULT_RECIPE, "objective.teacher_interval=20.5")


def test_the_objective_is_resolved_once_in_recipes_that_are_loaded_and_in_those_that_are_built() -> None:
    recipe = load_recipe(DEFAULT_RECIPE)
    assert recipe.objective_config is recipe.objective_config
    built = Recipe(objective={"name": "phased", "phases": 2, "terms": {"gradient": {"weight": 0.5, "soft": True}}})
    assert built.objective_config == PhasedConfig(phases=2, terms={"gradient": GradientConfig(weight=0.5, soft=True)})
    changed = replace(built, objective={"name": "denoise"})
    assert changed.objective_config == DenoiseConfig() and changed.objective_config.student is None
    with pytest.raises(ValueError, match="objective denoise trains no student, so no terms can be added to it"):
        _ = replace(built, objective={"name": "denoise", "terms": {"gradient": {"weight": 1}}}).objective_config


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_declares_what_it_trains(name: str) -> None:
    objective, config = OBJECTIVES[name], OBJECTIVES[name].Config()
    assert (objective.trains == "lora") == (config.student is not None)
    assert issubclass(objective, FullWeightObjective) == (config.student is None)
    if config.student is not None:
        assert config.student.sampler in SAMPLERS and config.student.options.solver_steps == 50
        assert config.student.guidance in ((6.0, 16.0), (7.5, 7.5)) and config.student.terms == {}
    assert all(second.name in (EMA, FAKE_SCORE) for second in config.second_adapters)
    assert any(second.trained for second in config.second_adapters) == (name == "distribution_matching")


def test_a_full_weight_objective_does_not_limit_the_steps_of_previews() -> None:
    recipe = load_recipe(None, ["objective.name=denoise", "log.preview_every=5", "log.preview_steps=80"])
    assert recipe.student == LCM_STUDENT and recipe.log.preview_steps == 80
