"""launch/infer.py with prompts: what it writes and says, on the tiny model with an adapter of random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.evaluation.ocr import OcrNotInstalled
from distill.inference.loading import SamplingModel, load_dataset, load_sampling_model, read_samples
from distill.inference.model import make_model
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.places import Place
from distill.inference.prompt_file import read_metadata
from launch import infer
from launch.common import prompt_drawing
from tests.helpers.stored_run import write_run

PROMPT = ("--prompt", 'a red wall that reads "GO"', "--box", "4,16,60,48", "--steps", "1")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> SamplingModel:
    folder = tmp_path_factory.mktemp("run")
    options = [f"data.options.{option}" for option in ("resolution=64", "font_hint_prob=0", "mask_img_prob=0")]
    recipe = load_recipe(DEFAULT_RECIPE, [*options, f"run_root={folder}", "name=run"])
    torch.manual_seed(0)
    write_run(folder / "run", recipe, make_model(recipe.model, recipe.seed))
    return load_sampling_model(folder / "run", None)


@pytest.fixture(autouse=True)
def reuse(opened: SamplingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "load_sampling_model", lambda *_: opened)


def call(out: Path, *argv: str) -> int:
    return infer.main(["--checkpoint", "run", "--out", str(out), *argv])


@pytest.mark.heavy
def test_a_prompt_is_drawn_by_student_and_teacher(tmp_path, capsys):
    argv = ("--teacher", "--teacher-steps", "1", "--guidance", "1", "--seed", "3", "--color", "blue", "--ocr", "own")
    assert call(tmp_path, *PROMPT, *argv) == 0
    names = ["prompt-0-student-phased-1.png", "prompt-0-teacher-ddim-1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    entry = read_metadata(tmp_path / names[0])
    assert entry["settings"]["seed"] == 3 and entry["lines"][0]["color"] == [0, 0, 255]
    assert [picture["file"] for picture in entry["pictures"]] == names[::-1]
    printed = capsys.readouterr().out
    note, drawn = printed.index('prompt: "GO": letters would be '), printed.index("student 1: 1 UNet calls")
    assert note < drawn  # said before drawing
    assert "  'GO': " in printed


@pytest.mark.heavy
def test_a_sample_of_a_dataset_asked_for_as_a_prompt_is_the_same_picture(opened, tmp_path):
    """Bit for bit, with the same seed, of student and teacher."""
    write_dataset(tmp_path, 1, SyntheticConfig(size=96), seed=5)
    how = ("--steps", "2", "--teacher", "--teacher-steps", "2", "--seed", "7")
    assert call(tmp_path / "out", "--data", str(tmp_path / "data.json"), *how) == 0
    dataset, _ = load_dataset([tmp_path / "data.json"], opened.recipe)
    (sample,), _ = read_samples(dataset, [0])
    assert sample.n_lines == 2
    places = [Place(polygon, sample.position[n].numpy()) for n, polygon in enumerate(sample.polygons)]
    colors = [tuple(map(int, color)) for color in sample.color[: len(places)].tolist()]
    prompt = sample.image_caption + " ".join(f"“{text}”" for text in sample.texts)
    result = AnyText2Pipeline(opened)(
        prompt, places=places, colors=colors, steps=2, teacher=True, teacher_steps=2, seed=7
    )
    for image, key in ((result.images[0], "student-phased-2"), (result.teacher_images[0], "teacher-ddim-2")):
        drawn = np.array(Image.open(tmp_path / "out" / f"sample000000-{key}.png"))
        assert np.array_equal(np.array(image), drawn), key


@pytest.mark.heavy
def test_a_photograph_is_edited(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "photograph.png")
    argv = ("--prompt", '"GO"', "--edit", str(tmp_path / "photograph.png"), "--box", "10,10,60,40", "--steps", "1")
    assert call(tmp_path / "out", *argv) == 0
    edited = np.array(Image.open(tmp_path / "out" / "prompt-0-student-phased-1.png"))
    assert edited.shape == picture.shape and np.array_equal(edited[60:], picture[60:])
    assert not np.array_equal(edited[10:40, 10:60], picture[10:40, 10:60])


@pytest.mark.heavy
def test_a_file_of_prompts_goes_on_where_it_was(tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": '"GO"', "boxes": ["4,16,60,48"]}, {"prompt": '"A" "B"', "boxes": ["4,16,60,48"]}]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    argv = ("--prompts", str(file), "--steps", "1", "--count", "2")
    assert call(tmp_path / "out", *argv) == 2
    printed = capsys.readouterr().out
    assert "prompt000002: places: 1 for 2 texts" in printed and "drew 1 of 2 prompts" in printed
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    lines[1]["boxes"].append("4,50,60,62")
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert call(tmp_path / "out", *argv) == 0
    assert "1 of 2 prompts are drawn already" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 2


@pytest.mark.heavy
def test_a_command_translates_the_description(tmp_path):
    program = tmp_path / "translate.py"
    program.write_text("input(); print('a shop')", encoding="utf-8")
    argv = ("--translate", f"command:{sys.executable} {program}", "--prompt", "一家商店，写着“GO”", *PROMPT[2:])
    assert call(tmp_path / "out", *argv) == 0
    assert read_metadata(tmp_path / "out" / "prompt-0-student-phased-1.png")["caption"] == "a shop. "


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((*PROMPT, "--data", "a.json"), "--data: belongs to samples of a dataset"),
        ((*PROMPT, "--steps", "2"), "--steps: 2 numbers; give one with prompts"),
        ((*PROMPT[:4], "--steps", "3"), "num_inference_steps=3: does not divide the student's 4 phases"),
        ((*PROMPT[:4], "--steps", "0"), "--steps 0: must be at least 1"),
        ((*PROMPT, "--color", "reddish"), "colour 'reddish'"),
        ((*PROMPT, "--font", "Comic Sans"), "font Comic Sans: neither a file nor one of"),
        (("--prompt", '"GO"', "--edit", "gone.png", "--box", "1,1,9,9"), "image gone.png: image missing"),
        ((*PROMPT[:2], "--box", "4,16,90,48"), "box 4,16,90,48: x = 90 is outside of the picture of 64 x 64 pixels"),
        (("--prompt", '"A" "B"', *PROMPT[2:]), "places: 1 for 2 texts; add 1, or leave out texts in quotes"),
        (("--prompt", f'"{"A" * 21}"', *PROMPT[2:]), "has 21 characters, at most 20 are written in a line"),
        (("--prompt", '"\u200b"', *PROMPT[2:]), "has nothing to draw; write a character between the quotes"),
        ((*PROMPT, "--edit", __file__), "test_infer_prompts.py: image corrupt (no known format"),
        ((*PROMPT[:2], "--mask", "{empty}"), "mask: empty; draw one shape for each text"),
        (("--prompts", "gone.jsonl"), "gone.jsonl: No such file or directory"),
        ((*PROMPT, "--translate", "google"), "translate: 'google' is not known"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, argv, message):
    Image.new("L", (64, 64)).save(tmp_path / "empty.png")
    assert call(tmp_path / "out", *(word.replace("{empty}", str(tmp_path / "empty.png")) for word in argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count(message) == 1 and error.count("\n") == 1
    assert not list(tmp_path.rglob("prompt-*"))


def test_an_engine_that_is_not_installed_is_named_once(tmp_path, capsys, monkeypatch):
    def missing(name: str, *_: object, **__: object) -> None:
        raise OcrNotInstalled(f"--ocr {name}: needs modelscope")

    monkeypatch.setattr(prompt_drawing, "make_ocr_engine", missing)
    assert call(tmp_path, *PROMPT, "--ocr", "duguang") == 2
    assert capsys.readouterr().err == "error: --ocr duguang: needs modelscope\n"


@pytest.mark.heavy
def test_a_prompt_without_quotes_is_drawn_without_words_and_told(tmp_path, capsys):
    assert call(tmp_path, "--prompt", "a red wall", "--steps", "1") == 0
    assert "prompt: no words in quotes: nothing is written" in capsys.readouterr().out
    assert read_metadata(tmp_path / "prompt-0-student-phased-1.png")["lines"] == []
