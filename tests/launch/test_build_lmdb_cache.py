"""The command that builds a feature cache, and a run's data section that uses it."""

from __future__ import annotations

import json
import resource
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from anytext2.core.batch import collate
from anytext2.core.rng import Draws
from anytext2.data.annotations import load_records
from anytext2.model.anytext2 import AnyText2
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import ModelConfig, Recipe
from distill.data.build import build_dataset
from distill.data.latents import LatentSource
from distill.data.splits import records_by_size
from distill.inference.model import make_model
from distill.runtime.world import World
from launch import build_lmdb_cache

WORLD = World(0, 0, 1, torch.device("cpu"))
SMALL = ["resolution=64", "max_lines=3", "mask_img_prob=0.5"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, 6, SyntheticConfig(size=128), seed=3)
    return folder / "data.json"


@pytest.fixture(scope="module")
def store(source: Path) -> Path:
    path = source.parent / "features.lmdb"
    recipe = str(DEFAULT_RECIPE)
    arguments = [
        str(source),
        "--recipe",
        recipe,
        "--out",
        str(path),
        "--workers",
        "1",
        "--latents",
        "--captions",
        *SMALL,
    ]
    assert build_lmdb_cache.main(arguments) == 0
    return path


@pytest.fixture(scope="module")
def model() -> AnyText2:
    return make_model(ModelConfig(), 0).eval()


def recipe_of(source: Path, store: Path, *more: str) -> Recipe:
    options = [f"data.options.{option}" for option in SMALL]
    return load_recipe(DEFAULT_RECIPE, [f"data.sources=[{source}]", f"data.cache={store}", *options, *more])


@pytest.mark.heavy
def test_a_run_takes_its_latents_from_the_store(source: Path, store: Path, model: AnyText2) -> None:
    cached = build_dataset(recipe_of(source, store, "data.latents=cache"), WORLD, model)
    online = build_dataset(recipe_of(source, store, "data.cache=null", "data.latents=encode"), WORLD, model)
    batch, seen = (collate([data.sample(i, 2) for i in range(6)]).normalized() for data in (cached, online))
    assert batch.image.shape == (6, 3, 0, 0) and seen.image.shape == (6, 3, 64, 64)
    draws = Draws(1, (2,) * 6, batch.index)
    latents = LatentSource(model, keep_in_memory=False)
    with torch.no_grad():
        torch.testing.assert_close(latents(batch, draws), latents(seen, draws), atol=5e-3, rtol=5e-3)
        ours, theirs = model.masked_latents(batch), model.masked_latents(seen)
    assert any(batch.editing) and not all(batch.editing)
    for row, editing in enumerate(batch.editing):
        if not editing:
            torch.testing.assert_close(ours[row], theirs[row])
        else:  # its hidden area has exact edges, the other's may be a pixel or two wider or narrower
            assert (ours[row] - theirs[row]).square().mean() < 0.2 * theirs[row].square().mean()


def test_a_run_takes_its_contexts_from_the_store(source: Path, store: Path, model: AnyText2) -> None:
    cached = build_dataset(recipe_of(source, store, "data.captions=cache"), WORLD, model)
    samples = [cached.sample(i, 2) for i in range(6)]
    assert all(sample.image_context is not None for sample in samples)
    batch = collate([replace(samples[0], image_context=None), *samples[1:]])
    assert batch.context_chunks[0] == 0 and min(batch.context_chunks[1:]) == 1
    with torch.no_grad():
        online = model.cond_stage_model.encode_image_captions(batch.image_caption)
        stored = model.encode_conditions(batch.normalized(), model.masked_latents(batch.normalized())).image_context
    torch.testing.assert_close(stored, online, atol=4e-3, rtol=2e-3)
    assert not torch.equal(stored, online), "these are rounded to float16"


def test_long_captions_are_shortened_anew_and_have_no_context(source: Path, store: Path, model: AnyText2) -> None:
    recipe = recipe_of(source, store, "data.captions=cache", "data.options.max_caption_words=2")
    data = build_dataset(recipe, WORLD, model)
    long = [index for index in range(6) if len(data.records[index].caption.split()) > 2]
    assert len(long) == data.count_shortened_captions() > 0
    assert all((data.sample(index, 0).image_context is None) == (index in long) for index in range(6))


@pytest.mark.heavy
def test_a_store_of_another_model_is_refused(source: Path, store: Path) -> None:
    other = make_model(ModelConfig(weights="scratch"), 5)
    with pytest.raises(ValueError, match="latents: the store has .*, the run wants"):
        build_dataset(recipe_of(source, store, "data.latents=cache"), WORLD, other)
    with pytest.raises(ValueError, match="captions: the store has .*, the run wants"):
        build_dataset(recipe_of(source, store, "data.captions=cache"), WORLD, other)


def test_a_store_of_other_settings_is_refused_or_left_out_when_asked(
    source: Path, store: Path, model: AnyText2, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["data.latents=encode", "data.options.max_chars=9"]
    with pytest.raises(ValueError, match="max_chars: the store has 20, the run wants 9.*cache_mismatch=online"):
        build_dataset(recipe_of(source, store, *other), WORLD, model)
    data = build_dataset(recipe_of(source, store, *other, "data.cache_mismatch=online"), WORLD, model)
    assert data.cache is None and "everything is drawn and encoded online" in capsys.readouterr().out
    with pytest.raises(ValueError, match="cannot go on without it"):
        build_dataset(
            recipe_of(source, store, other[1], "data.latents=cache", "data.cache_mismatch=online"), WORLD, model
        )


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.options.max_chars=9", "data.latents=encode"], ["data.options.max_chars=9"]),
        (["data.options.resolution=72", "data.captions=cache"], ["--captions", "data.options.resolution=72"]),
        (["data.buckets=[64,128x64]", "data.latents=encode"], ["data.buckets=[64,128x64]"]),
        (["data.latents=cache", "model.weights=scratch", "seed=5"], ["--latents", "model.weights=scratch", "seed=5"]),
    ],
)
def test_a_store_that_does_not_fit_prints_the_command_that_builds_the_one_wanted(
    source: Path, store: Path, tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    mine = tmp_path / "my store.lmdb"
    shutil.copy(store, mine)
    recipe = recipe_of(source, mine, *overrides)
    model = make_model(recipe.model, recipe.seed)
    with pytest.raises(ValueError, match="This builds the one for this run: ") as caught:
        build_dataset(recipe, WORLD, model)
    command = shlex.split(str(caught.value).split("for this run: ")[1])
    assert Path(command[1]).samefile(build_lmdb_cache.__file__) and set(words) <= set(command)
    assert build_lmdb_cache.main([*command[2:], "--workers", "0"]) == 0
    assert build_dataset(recipe, WORLD, model).cache is not None


@pytest.mark.heavy
def test_machines_build_a_part_each_and_a_run_uses_the_folder(
    source: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(source), "--out", str(tmp_path / "features.lmdb"), "--workers", "0", *SMALL]
    assert build_lmdb_cache.main([*command, "--shard", "1/2"]) == 0
    recipe = recipe_of(source, tmp_path, "data.latents=encode")
    with pytest.raises(ValueError, match="of data.json, these parts are not there: 2/2"):
        build_dataset(recipe, WORLD)
    assert build_lmdb_cache.main([*command, "--shard", "2/2"]) == 0
    assert f"a run uses them with data.cache={tmp_path}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features-1of2.lmdb", "features-2of2.lmdb"]
    parts = build_dataset(recipe, WORLD)
    whole = build_dataset(recipe_of(source, store, "data.latents=encode"), WORLD)
    assert parts.cache is not None and parts.cache.for_size((64, 64)) is not None
    for index in range(6):
        assert torch.equal(parts.sample(index, 1).glyph, whole.sample(index, 1).glyph)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--map-size", "0.00001"], "--map-size"),
        (["--workers", "-1"], "--workers -1"),
        (["colour_prob=1"], "colour_prob"),
        (["--shard", "3/2"], "--shard 3/2"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(
    source: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(source), "--out", str(tmp_path / "x.lmdb"), "--workers", "0", "resolution=64", *arguments]
    assert build_lmdb_cache.main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (tmp_path / "x.lmdb").exists()


def test_a_build_without_room_ends_with_2_and_goes_on(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(source), "--out", str(tmp_path / "x.lmdb"), "--workers", "0", "resolution=64"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        assert build_lmdb_cache.main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "x.lmdb.partial: a limit on the size of files is reached" in error
    assert build_lmdb_cache.main(command) == 0 and (tmp_path / "x.lmdb").is_file()


@pytest.mark.heavy
def test_buckets_have_a_store_for_each_size(
    source: Path, model: AnyText2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, size in enumerate([(128, 64), (64, 128), (120, 70)]):
        path = source.parent / "imgs" / load_records(source)[0][number].name
        Image.open(path).resize(size).save(tmp_path / path.name)
    for path in (source.parent / "imgs").iterdir():
        if not (tmp_path / path.name).exists():
            shutil.copy(path, tmp_path)
    wide = tmp_path / "data.json"
    wide.write_text(json.dumps(json.loads(source.read_text(encoding="utf-8")) | {"data_root": "."}), encoding="utf-8")
    # The pictures are resized without their boxes, some of which then lie outside.
    out = tmp_path / "features.lmdb"
    buckets = ("data.buckets=[64,128x64]", "data.latents=encode", "data.max_faulty_lines=1")
    rest = ["--recipe", str(DEFAULT_RECIPE), "--out", str(out), "--workers", "0", *buckets]
    assert build_lmdb_cache.main([str(wide), *SMALL, *rest]) == 0
    said = capsys.readouterr().out
    assert "features-64.lmdb: 4 pictures" in said and "features-128x64.lmdb: 2 pictures" in said
    cached = build_dataset(recipe_of(wide, out, *buckets), WORLD, model)
    online = build_dataset(recipe_of(wide, out, *buckets, "data.cache=null"), WORLD, model)
    found = records_by_size(online, recipe_of(wide, out, *buckets).data)
    assert {size: len(indices) for size, indices in found.items()} == {(64, 64): 4, (64, 128): 2}
    for size, indices in found.items():
        store = cached.cache.for_size(size)
        for index in indices.tolist():
            ours, theirs = cached.sample(index, 1, size), online.sample(index, 1, size)
            assert store.entry(cached.record(index)) is not None and ours.image.shape[1:] == size
            for name in ("glyph", "glyph_line", "position"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))
    with pytest.raises(ValueError, match="buckets: the store has"):
        build_dataset(recipe_of(wide, out, "data.buckets=[64]", *buckets[1:]), WORLD, model)
