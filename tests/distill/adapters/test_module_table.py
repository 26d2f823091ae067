"""The layers of a model by family, and which names of somebody's list it has."""

from __future__ import annotations

import pytest

from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from distill.adapters.lora import AdapterConfig, adapter_parameters, add_student
from distill.adapters.module_table import (
    OTHER,
    adapted_by,
    adapted_by_presets,
    by_family,
    find_layers,
    listed_names,
    shapes,
    sort_names,
)
from distill.adapters.roles import STUDENT
from distill.adapters.targets import TARGET_PRESETS
from tests.helpers.old_settings import old_target_modules


@pytest.fixture(scope="module")
def tiny() -> AnyText2:
    return build_model(load_model_config("tiny"), "meta")


def test_every_layer_has_a_family(tiny: AnyText2) -> None:
    layers = find_layers(tiny)
    groups = by_family(layers)
    assert sum(map(len, groups.values())) == len(layers) > 300
    assert not any(OTHER in key for key in groups)
    attention = groups["UNet", "self-attention (attn1)", "Linear"]
    assert len(attention) == 16 and shapes(attention) == "16 of 160x160"


@pytest.mark.parametrize("targets", TARGET_PRESETS)
def test_a_preset_trains_what_it_says(targets: str) -> None:
    model = build_model(load_model_config("tiny"), "meta")
    told = adapted_by(model, find_layers(model), targets)
    student = add_student(model, AdapterConfig(rank=2, targets=targets), 0)
    parameters = adapter_parameters(student, STUDENT)
    assert sum(p.numel() for _, p in parameters) == 2 * told.trained_per_rank
    assert {name.split(".lora_")[0] for name, _ in parameters} == set(told.paths)


def test_of_the_earlier_list_228_names_exist_in_the_official_model() -> None:
    model = build_model(load_model_config("sd15"), "meta")
    layers = find_layers(model)
    names = listed_names(old_target_modules())
    assert len(names) == len(set(names)) == 517
    found = sort_names(model, layers, names)
    assert (len(found.present), len(found.elsewhere), len(found.absent)) == (228, 0, 289)
    paper = adapted_by_presets(model, layers)[0]
    assert set(found.present) < set(paper.paths) and len(paper.paths) == 252
    assert paper.trained_per_rank * 64 == 26_828_800
    assert all(".middle_block." in path or ".zero_convs." in path for path in set(paper.paths) - set(found.present))


def test_names_of_shared_parts_and_of_blocks_are_told_apart(tiny: AnyText2) -> None:
    text = (
        "first_stage_model.quant_conv\nmodel.diffusion_model.out.0\n# a comment\ncontrol_model.zero_convs.0.0 # first\n"
    )
    found = sort_names(tiny, find_layers(tiny), listed_names(text))
    assert found.present == ("control_model.zero_convs.0.0",)
    assert found.elsewhere == ("first_stage_model.quant_conv", "model.diffusion_model.out.0") and not found.absent
