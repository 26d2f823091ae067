"""Every recipe key is in one list; what differs between two recipes, and whether it changes what is learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.config.differences import (
    FREE,
    LEARNED,
    LEARNED_IN_SCHEDULES,
    OF_OPTIMIZER,
    OF_STUDENT,
    PATHS,
    is_in,
    learned_differences,
    recipe_values,
)
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.objectives import OBJECTIVES

LISTS = (*LEARNED, *LEARNED_IN_SCHEDULES, *FREE)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_recipe_key_is_in_exactly_one_list(objective: str) -> None:
    keys = recipe_values(load_recipe(None, [f"objective.name={objective}"]))
    for key in keys:
        listed = [entry for entry in LISTS if is_in(key, [entry])]
        assert len(listed) == 1, f"{key} is in {listed}: put it into one list of distill/config/differences.py"
    for entry in (*LISTS, *OF_OPTIMIZER, *OF_STUDENT, *PATHS):
        assert any(is_in(key, [entry]) for key in keys), f"{entry} is no recipe key any more"


def found(*changes: str, base: tuple[str, ...] = ()) -> dict[str, tuple[object, object]]:
    old, new = (recipe_values(load_recipe(DEFAULT_RECIPE, list(given))) for given in (base, (*base, *changes)))
    return {d.key: (d.old, d.new) for d in learned_differences(old, new) if not d.is_moved}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        (["train.learning_rate=2e-3"], {"train.learning_rate"}),
        (["train.learning_rate=0.0010", "seed=7"], set()),  # the same numbers
        (["objective.name=x0_regression"], {"objective.name", "objective.loss"}),  # what both have, each its default
        (["objective.phases=2", "objective.w_max=3.0"], {"objective.phases", "objective.w_max"}),
        (["objective.negative_prompt=''"], set()),  # a default, spelled out
        (["objective.terms={focal_frequency: {weight: 0.1}}"], None),
        (["data.options.font_hint_area=[0.5,1.0]", "data.split=[0.8,0.1,0.1]"], None),
        (["data.synthetic.seed=12"], {"data.synthetic.seed"}),
        (["data.sources=[a.json]"], None),
        (["data.latents=cache", "data.cache=x.lmdb"], {"data.latents"}),  # against `memory`
        (["train.max_steps=80"], {"train.max_steps"}),  # a cosine reaches further
        (["train.max_steps=80", "train.schedule=constant"], {"train.max_steps", "train.schedule"}),
        (["lora.targets=all", "lora.dropout=0.1"], {"lora.targets", "lora.dropout"}),
        (["train.betas=[0.9,0.999]"], set()),
        (["train.optimizer=prodigy", "train.learning_rate=1.0"], None),
        (["name=other", "train.micro_batch=4", "eval.every=5", "log.every=1", "lora.weights=x"], set()),
        (["watchdog.stall=60", "checkpoint.keep=9", "tracking.enabled=false", "data.workers=0"], set()),
    ],
)
def test_what_differs(changes: list[str], keys: set[str] | None) -> None:
    differences = found(*changes)
    if keys is None:
        assert differences and all(any(key.startswith(c.split("=")[0]) for c in changes) for key in differences)
    else:
        assert set(differences) == keys


def test_more_updates_at_a_constant_rate_are_the_same_run() -> None:
    assert found("train.max_steps=80", base=("train.schedule=constant",)) == {}


def test_drawn_data_do_not_matter_to_a_run_on_files(tmp_path: Path) -> None:
    assert found("data.synthetic.count=3", base=(f"data.sources=[{tmp_path}/a.json]",)) == {}


def test_a_file_may_move_and_not_become_another(tmp_path: Path) -> None:
    here, there, other = tmp_path / "a.json", tmp_path / "b" / "a.json", tmp_path / "c.json"
    there.parent.mkdir()
    there.write_text("")
    other.write_text("")
    base = (f"data.sources=[{here}]",)
    assert found(f"data.sources=[{there}]", base=base) == {}  # the old one is gone
    assert "data.sources" in found(f"data.sources=[{other}]", base=base)
    here.write_text("")
    assert "data.sources" in found(f"data.sources=[{there}]", base=base)  # both are there: another file
    here.unlink()
    here.symlink_to(there)
    assert found(f"data.sources=[{there}]", base=base) == {}
    assert "data.sources" in found(f"data.sources=[{there},{other}]", base=base)


@pytest.mark.parametrize("entry", ["train", "train.learning_rate", "objective", "objective.phases", "data.options"])
def test_keys_and_sections_can_be_allowed(entry: str) -> None:
    assert load_recipe(DEFAULT_RECIPE, [f"checkpoint.allow=[{entry}]"]).checkpoint.allow == [entry]


@pytest.mark.parametrize("entry", ["trian", "train.learning", "log.every", ""])
def test_an_allowance_of_nothing_is_a_mistake(entry: str) -> None:
    with pytest.raises(ValueError, match="checkpoint.allow: .* is no key or section") as caught:
        load_recipe(DEFAULT_RECIPE, [f"checkpoint.allow=['{entry}']"])
    assert "\n" not in str(caught.value)


def test_a_null_is_what_it_stands_for() -> None:
    """Recipes of before the option was null by default say false."""
    assert found("data.options.cap_watermark=false") == {}
    assert set(found("data.options.like_reference=true")) == {
        "data.options.like_reference",
        "data.options.cap_watermark",
    }
