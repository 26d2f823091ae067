"""The published protocol: on a stub for its numbers, and end to end on a small benchmark drawn in its layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anytext2.core.batch import UNSET_COLOR
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import Recipe
from distill.diffusion.samplers import LCM_OPTIONS
from distill.diffusion.schedule import NoiseSchedule
from distill.evaluation.benchmark import Benchmark, benchmark_ned, benchmark_rows
from distill.evaluation.benchmark_data import (
    benchmark_conditions,
    find_annotation_files,
    load_prompts,
    unique_file_stems,
)
from distill.inference.model import make_model
from launch import evaluate
from tests.helpers.models.mini_model import write_mini
from tests.helpers.models.stub_roles import StubRoles, make_sample
from tests.helpers.stored_run import write_run


class OcrEngine:
    """Reads the given texts, picture by picture."""

    name = "stub"

    def __init__(self, read: list[list[str]]) -> None:
        self.read = read * 100
        self.seen: list[np.ndarray] = []

    def recognize_lines(self, image: np.ndarray, polygons: list[np.ndarray]) -> list[str]:
        self.seen.append(image)
        return self.read.pop(0)[: len(polygons)]

    def in_charset(self, text: str) -> bool:
        return not set(text) & set("éü")


def test_four_pictures_of_a_prompt_are_saved_and_read_as_saved(tmp_path: Path) -> None:
    reader = OcrEngine([["AB", "CD"], ["AB", "cD"], ["", "CD"], ["AB", "CD"]])
    samples = [make_sample(3, ("AB", "CD")), replace(make_sample(4, ("AB", "CD")), name="../../x y.png")]
    rows = benchmark_rows([2], "consistency", 0.3)
    benchmark = Benchmark(
        StubRoles(), NoiseSchedule.scaled_linear(), rows, tmp_path, reader, None, LCM_OPTIONS, max_examples=1
    )
    teacher, student = benchmark.run(samples, "laion_word", 200)
    assert (teacher.key, teacher.steps, teacher.guidance) == ("teacher-ddim-20", 20, 7.5)
    assert (student.key, student.pictures, student.lines) == ("student-consistency-2", 8, 16)
    assert teacher.sen_acc == pytest.approx(6 / 8) and teacher.sen_acc_95 == pytest.approx((6 / 8, 6 / 8))
    assert teacher.ned == pytest.approx((6 + (1 - 1 / 2.00001) + (1 - 2 / 2.00001)) / 8)
    files = sorted(path.name for path in (tmp_path / "teacher-ddim-20" / "laion_word").iterdir())
    assert files == [f"{stem}_{k}.jpg" for stem in ("picture-3", "x_y") for k in range(4)]
    saved = np.array(Image.open(tmp_path / "teacher-ddim-20" / "laion_word" / "picture-3_2.jpg"))
    assert np.array_equal(saved, reader.seen[2])
    assert len({image.tobytes() for image in reader.seen}) == 16  # four noises of each prompt
    assert [one.name for one in benchmark.examples] == ["picture-3"]
    assert benchmark.examples[0].recognized["teacher-ddim-20"] == ("AB", "CD")


def test_pictures_do_not_depend_on_the_prompts_beside_them(tmp_path: Path) -> None:
    rows = benchmark_rows([], "consistency", 0.3)
    for name, batch in (("a", 4), ("b", 8)):
        roles = StubRoles()
        roles.model.eval()
        benchmark = Benchmark(
            roles, NoiseSchedule.scaled_linear(), rows, tmp_path / name, None, None, LCM_OPTIONS, batch=batch
        )
        (found,) = benchmark.run([make_sample(n) for n in (3, 4)], "s", 20)
        assert np.isnan(found.sen_acc) and found.to_json()["sen_acc"] is None and found.pictures == 8
    one, other = (np.array(Image.open(tmp_path / n / "teacher-ddim-20" / "s" / "picture-4_3.jpg")) for n in "ab")
    assert np.abs(one.astype(int) - other).max() <= 2


def test_ned_is_the_published_one() -> None:
    reader = OcrEngine([])
    assert benchmark_ned("ABCD", "ABCX", reader) == pytest.approx(1 - 1 / 4.00001)
    assert benchmark_ned("A B", "AB", reader) == pytest.approx(1 - 1 / 3.00001)  # nothing is normalised
    assert benchmark_ned("é", "ü", reader) == 1.0  # unknown characters are all the same
    assert benchmark_ned("", "", reader) == 1.0


def test_names_of_pictures_name_files_and_each_one_once() -> None:
    assert unique_file_stems(["a.jpg", "b/a.png", "../..", "é.jpg"]) == ["a", "a-1", "__", "é"]


def test_the_font_hint_is_the_glyph_page() -> None:
    sample = make_sample(1)
    doubled = replace(sample, glyph=sample.glyph.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert (
        torch.equal(benchmark_conditions(doubled).font_hint, sample.glyph)
        and benchmark_conditions(doubled).font_hint.dtype == torch.uint8
    )


@pytest.fixture(scope="module")
def benchmark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of two and three drawn pictures, laid out and annotated as the benchmark is: no languages, a data_root
    of somebody's server, pictures in imgs/."""
    folder = tmp_path_factory.mktemp("benchmark")
    for name, count in (("wukong_word", 2), ("laion_word", 3)):
        write_dataset(folder / name, count, SyntheticConfig(size=96), seed=len(name))
        content = json.loads((folder / name / "data.json").read_text(encoding="utf-8"))
        (folder / name / content["data_root"]).rename(folder / name / "imgs")
        content["data_root"] = "/data/of/somebody"
        for item in content["data_list"]:
            for annotation in item["annotations"]:
                del annotation["language"]
        (folder / name / "test1k.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_prompts_have_nothing_random(benchmark_folder: Path) -> None:
    sets = find_annotation_files(benchmark_folder)
    assert list(sets) == ["Chinese", "English"]
    recipe = Recipe()
    recipe.data.options = replace(recipe.data.options, resolution=64)
    dataset = load_prompts(sets["English"], recipe, first=1, count=5)
    assert len(dataset) == 2
    one, again = (benchmark_conditions(dataset.sample(0, epoch)) for epoch in (0, 7))
    assert not one.editing and one.n_lines > 0 and (one.color == UNSET_COLOR).all() and one.position.shape[0] == 20
    assert torch.equal(one.glyph, again.glyph) and torch.equal(one.position, again.position)
    assert one.image.shape == (3, 64, 64) and one.font_hint.any() and torch.equal(one.font_hint, again.font_hint)
    with pytest.raises(ValueError, match="--first 3: .*has 3 prompts, 0 to 2"):
        load_prompts(sets["English"], recipe, first=3)


def test_without_pictures_one_line_says_where_they_go(benchmark_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "laion_word").mkdir()
    file = tmp_path / "laion_word" / "test1k.json"
    file.write_bytes((benchmark_folder / "laion_word" / "test1k.json").read_bytes())
    with pytest.raises(ValueError, match=f"no picture of it is there; put them into {tmp_path}/laion_word/imgs"):
        load_prompts(file, Recipe())
    with pytest.raises(ValueError, match="wukong_word/test1k.json missing; unpack"):
        find_annotation_files(tmp_path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint of a mini model."""
    folder = tmp_path_factory.mktemp("mini")
    changes = [*write_mini(folder), "data.options.resolution=64", "name=run", f"run_root={folder}"]
    recipe = load_recipe(DEFAULT_RECIPE, [*changes, "tracking.enabled=false", "eval.steps=2"])
    write_run(folder / "run", recipe, make_model(recipe.model, recipe.seed))
    return folder / "run"


@pytest.mark.heavy
def test_end_to_end(benchmark_folder: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--run", str(run_dir), "--protocol", "anytext-benchmark", "--benchmark", str(benchmark_folder)]
    code = evaluate.main([*argv, "--count", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["protocol"] == "anytext-benchmark" and list(summary["sets"]) == ["Chinese", "English"]
    for rows in summary["sets"].values():
        assert [(row["role"], row["steps"], row["pictures"]) for row in rows] == [("teacher", 20, 8), ("student", 2, 8)]
        assert all(0 <= row["ned"] <= 1 and row["fid"] is None for row in rows)
    assert len(list((tmp_path / "anytext-benchmark").rglob("*.jpg"))) == 2 * 2 * 8
    assert Image.open(tmp_path / "sheet.png").size[0] > 600
    assert "Sen.ACC" in printed.out and "were not measured: --clip-weights" in printed.out
