"""Where a run's weights come from, and its data where the recipe names none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anytext2.model.anytext2 import AnyText2
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import ModelConfig, Recipe
from distill.data.build import build_dataset
from distill.inference.model import make_model, make_schedule, require_recognizer
from distill.runtime.world import World
from tests.helpers.models.mini_model import write_mini


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("setup")
    changes = ["data.synthetic.count=3", "data.synthetic.size=96", "data.options.resolution=64"]
    return load_recipe(DEFAULT_RECIPE, [*write_mini(folder), *changes, f"run_root={folder}"])


def same(a: AnyText2, b: AnyText2) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.heavy
def test_weights_from_nothing_depend_on_the_seed_alone(recipe: Recipe) -> None:
    section = replace(recipe.model, weights="scratch")
    torch.manual_seed(1)
    first = make_model(section, seed=5)
    drawn = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(2))  # the global generator is left alone
    assert same(first, make_model(section, seed=5)) and not same(first, make_model(section, seed=6))


@pytest.mark.heavy
def test_weights_from_a_file_or_by_name_do_not_depend_on_the_seed(recipe: Recipe) -> None:
    for weights in (recipe.model.weights, "filled"):
        model = make_model(replace(recipe.model, weights=weights), seed=1)
        assert same(model, make_model(replace(recipe.model, weights=weights), seed=2))
        assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@pytest.mark.heavy
def test_parts_lie_over_the_rest_and_teach_a_new_font_recogniser(recipe: Recipe, tmp_path: Path) -> None:
    key = "head.fc.bias"
    part = torch.arange(12.0)
    save_file({f"text_predictor.{key}": part}, tmp_path / "part.safetensors")
    section = replace(recipe.model, weights="scratch", parts=[str(tmp_path / "part.safetensors")])
    state = make_model(section, 0).state_dict()
    assert torch.equal(state[f"text_predictor.{key}"], part)
    assert torch.equal(state[f"embedding_manager.font_predictor.{key}"], part)
    own = {f"embedding_manager.font_predictor.{key}": part + 1, f"text_predictor.{key}": part}
    save_file(own, tmp_path / "own.safetensors")
    state = make_model(replace(section, parts=[str(tmp_path / "own.safetensors")]), 0).state_dict()
    assert torch.equal(state[f"embedding_manager.font_predictor.{key}"], part + 1)
    trained = make_model(replace(section, weights=recipe.model.weights), 0).state_dict()
    assert not torch.equal(trained[f"embedding_manager.font_predictor.{key}"], part)  # it has weights of its own


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("section", "words"),
    [
        (ModelConfig(config="sd15", weights="embedded"), "only model.config=tiny ships weights, not sd15"),
        (ModelConfig(config="nowhere"), "model config 'nowhere': no such file; names that ship: sd15, tiny"),
        (ModelConfig(weights="nowhere.ckpt"), "nowhere.ckpt: no such weights file"),
        (ModelConfig(weights="scratch", parts=["nowhere.safetensors"]), "nowhere.safetensors: no such weights file"),
        (ModelConfig(weights="scratch", parts=["."]), r"no complete checkpoint-N"),
    ],
)
def test_weights_that_are_not_there(section: ModelConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make_model(section, 0)
    assert "\n" not in str(caught.value)


def test_the_schedule_is_the_model_s_own(recipe: Recipe) -> None:
    model = make_model(recipe.model, 0)
    table = make_schedule(model.cfg).alphas_cumprod
    assert table.dtype == torch.float64
    assert torch.equal(table.float(), model.alphas_cumprod)


def test_without_sources_pictures_are_drawn_once(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    dataset = build_dataset(recipe, world)
    assert len(dataset) == 3 and dataset.sample(0, 0).image.shape == (3, 64, 64)
    assert "drawing 3 pictures of 96 px" in capsys.readouterr().out
    written = (recipe.run_dir / "data" / "data.json").stat().st_mtime_ns
    build_dataset(recipe, world)
    assert (recipe.run_dir / "data" / "data.json").stat().st_mtime_ns == written
    assert "drawing" not in capsys.readouterr().out
    changed = replace(recipe, data=replace(recipe.data, synthetic=replace(recipe.data.synthetic, count=4)))
    with pytest.raises(ValueError, match=r"'count': 4.* holds .*'count': 3") as caught:
        build_dataset(changed, world)
    assert "\n" not in str(caught.value)


def test_characters_without_a_glyph_are_counted(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    line = {"polygon": [[2, 2], [60, 2], [60, 30], [2, 30]], "text": "A\U00013000\U00013000", "language": "Latin"}
    path = recipe.run_dir / "rare.json"
    items = [{"img_name": "a.png", "annotations": [line]}]
    path.write_text(json.dumps({"data_root": ".", "data_list": items}), encoding="utf-8")
    build_dataset(replace(recipe, data=replace(recipe.data, sources=[str(path)])), world)
    output = capsys.readouterr().out
    assert "fonts: 2 characters (1 different) have no glyph" in output
    assert "warning: 1 of 1 pictures are missing; the first: no 'a.png' in " in output


@pytest.mark.parametrize("term", ["ocr_features", "ocr_ctc"])
def test_terms_that_read_need_a_recogniser_that_can(recipe: Recipe, tmp_path: Path, term: str) -> None:
    reading = replace(recipe, objective={"name": "phased", "terms": {term: {"weight": 0.1}}})
    reading.model.config = "tiny"  # whose charset ships
    for weights in ("scratch", "filled"):
        own = replace(reading, model=replace(reading.model, weights=weights))
        with pytest.raises(ValueError, match=f"terms.{term}: .* model.weights={weights} leaves untrained") as caught:
            require_recognizer(own)
        assert "\n" not in str(caught.value)
        save_file({"first_stage_model.x": torch.zeros(1)}, tmp_path / "vae.safetensors")
        own.model.parts = [str(tmp_path / "vae.safetensors")]
        with pytest.raises(ValueError, match="leaves untrained"):
            require_recognizer(own)
        checkpoint = tmp_path / f"run-{weights}" / "checkpoint-5"
        checkpoint.mkdir(parents=True)
        save_file({"text_predictor.head.fc.bias": torch.zeros(1)}, checkpoint / "model.safetensors")
        own.model.parts += [str(checkpoint / "model.safetensors")]
        require_recognizer(own)
    require_recognizer(replace(reading, model=replace(reading.model, weights="embedded")))
    plain = replace(recipe, model=replace(recipe.model, weights="scratch"), objective={"name": "phased"})
    require_recognizer(plain)


def test_the_spelling_term_needs_the_characters(recipe: Recipe, tmp_path: Path) -> None:
    config = tmp_path / "lost.yaml"
    config.write_text("recognizer: {charset: lost.txt}\n", encoding="utf-8")
    lost = replace(
        recipe,
        model=ModelConfig(config=str(config), weights="x.ckpt"),
        objective={"name": "phased", "terms": {"ocr_ctc": {"weight": 0.1}}},
    )
    with pytest.raises(ValueError, match="objective.terms.ocr_ctc: .*lost.txt"):
        require_recognizer(lost)
