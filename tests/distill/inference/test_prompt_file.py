"""Files of prompts: stopped at any place and started again, nothing is drawn twice and nothing is left out."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.diffusion.sampling import SamplingSpec
from distill.inference import prompt_file
from distill.inference.prompt_file import (
    PromptDrawing,
    ResultLog,
    duration,
    progress_bar,
    read_metadata,
    read_prompts,
    save_png,
)
from distill.inference.request import DrawingRequest
from distill.inference.result import DrawingResult, DrawnRow, PlacedLine
from tests.helpers.paths import ROOT

SPEC = SamplingSpec("student", "phased", 4)


class FakePipeline:
    """Draws grey pictures of 8 x 8 and notes the prompts. `stop`: is called before a prompt is drawn."""

    model = None

    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.stop = lambda prompt: None

    def draw(self, request: DrawingRequest, on_warning: Callable[[str], None]) -> DrawingResult:
        self.stop(request.prompt)
        on_warning("a note")
        self.drawn.append(request.prompt)
        images = tuple(Image.new("RGB", (8, 8), (n, n, n)) for n in range(request.num_images_per_prompt))
        line = PlacedLine(request.prompt, np.zeros((4, 2), np.float32), "Latin", None)
        return DrawingResult("caption", (line,), (DrawnRow(SPEC, images, 0.5, 4),), ("a note",))


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    monkeypatch.setattr(prompt_file, "model_identity", lambda model: "model 1")
    return FakePipeline()


@pytest.fixture
def prompts(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b", "count": 2}\n"c"\n', encoding="utf-8")
    return read_prompts(file, {"seed": 3})


def results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def draw_all(pipeline, prompts, out: Path, judge=None) -> tuple[int, list[str]]:
    out.mkdir(exist_ok=True)
    said: list[str] = []
    return PromptDrawing(pipeline, out, judge, said.append).draw_all(prompts, "prompts.jsonl"), said


def test_prompts_are_named_by_their_line(prompts):
    assert [(prompt.name, prompt.request.prompt) for prompt in prompts] == [
        ("prompt000001", "a"),
        ("prompt000003", "b"),
        ("prompt000004", "c"),
    ]
    assert {prompt.request.seed for prompt in prompts} == {3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"', "prompts.jsonl line 1: not JSON: .* at column 15"),
        (b'"a"\n{"prompt": "b", "size": 3}', "prompts.jsonl line 2: size: no such field"),
        (b"\n\n", "prompts.jsonl: has no prompt; write one JSON object a line"),
        ("ä".encode("latin-1"), "prompts.jsonl: not UTF-8 text"),
    ],
)
def test_a_faulty_file_is_refused_before_anything_is_drawn(tmp_path, content, message):
    (tmp_path / "prompts.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "prompts.jsonl", {})


def test_results_and_settings_are_written_down(pipeline, prompts, tmp_path):
    judge = lambda image, lines: [{"text": lines[0].text, "read": "x", "exact": False}]  # noqa: E731
    failed, said = draw_all(pipeline, prompts, tmp_path / "out", judge)
    assert failed == 0 and said[0] == "prompt000001: a note"
    assert said[1].startswith("[######..............] 1/3 prompt000001, student 0 of 1 right, ")
    entries = results(tmp_path / "out")
    assert [entry["name"] for entry in entries] == [prompt.name for prompt in prompts]
    files = [picture["file"] for entry in entries for picture in entry["pictures"]]
    names = ["prompt000001-0", "prompt000003-0", "prompt000003-1", "prompt000004-0"]
    assert files == [f"{name}-student-phased-4.png" for name in names]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == files
    second = entries[1]
    assert second["settings"] == {"prompt": "b", "seed": 3, "num_images_per_prompt": 2}
    assert second["warnings"] == ["a note"] and second["pictures"][1]["ocr"][0]["exact"] is False
    assert second["pictures"][0]["unet_calls"] == 4 and second["lines"][0]["text"] == "b"
    assert read_metadata(tmp_path / "out" / files[1]) == second


@pytest.mark.parametrize("where", ["before", "after the picture"])
def test_a_killed_batch_goes_on_where_it_was(pipeline, prompts, tmp_path, monkeypatch, where):
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    if where == "before":
        pipeline.stop = lambda prompt: killed() if prompt == "b" else None
    else:
        append = ResultLog.append
        monkeypatch.setattr(
            ResultLog, "append", lambda log, e: killed() if e["settings"]["prompt"] == "b" else append(log, e)
        )
    with pytest.raises(KeyboardInterrupt):
        draw_all(pipeline, prompts, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(prompt_file, "model_identity", lambda model: "model 1")
    pipeline.stop = lambda prompt: None
    _, said = draw_all(pipeline, prompts, tmp_path / "out")
    assert said[0] == "1 of 3 prompts are drawn already" and pipeline.drawn == ["a", "b", "c"]
    assert [entry["settings"]["prompt"] for entry in results(tmp_path / "out")] == ["a", "b", "c"]
    assert draw_all(pipeline, prompts, tmp_path / "out") == (0, ["3 of 3 prompts are drawn already"])


def test_a_prompt_that_changed_or_lost_its_picture_is_drawn_again(pipeline, prompts, tmp_path, monkeypatch):
    draw_all(pipeline, prompts, tmp_path / "out")
    (tmp_path / "out" / "prompt000003-1-student-phased-4.png").unlink()
    changed = [prompt_file.Prompt(prompts[0].name, DrawingRequest(prompt="A")), *prompts[1:]]
    _, said = draw_all(pipeline, changed, tmp_path / "out")
    assert pipeline.drawn == ["a", "b", "c", "A", "b"]
    assert said[:2] == [
        "1 of 3 prompts are drawn already",
        "drawn again, because settings, weights or files have changed: 1",
    ]
    assert [entry["settings"]["prompt"] for entry in results(tmp_path / "out")] == ["a", "b", "c", "A", "b"]
    monkeypatch.setattr(prompt_file, "model_identity", lambda model: "model 2")
    draw_all(pipeline, changed, tmp_path / "out")
    assert pipeline.drawn[5:] == ["A", "b", "c"]


def test_another_picture_under_the_same_name_or_another_engine_is_drawn_again(pipeline, tmp_path):
    def draw(reader: str | None = None) -> int:
        pipeline.drawn.clear()
        judge = None if reader is None else lambda image, lines: []
        drawing = PromptDrawing(pipeline, tmp_path / "out", judge, lambda line: None, (reader, None))
        assert drawing.draw_all(prompts, "prompts.jsonl") == 0
        return len(pipeline.drawn)

    pictures = [tmp_path / name for name in ("mask.png", "photograph.png", "letters.png")]
    for number, path in enumerate(pictures):
        Image.new("L", (8, 8), number).save(path)
    line = {
        "prompt": "a",
        "mask": "mask.png",
        "image": "photograph.png",
        "fonts": [{"image": "letters.png"}, "Lobster"],
    }
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line), encoding="utf-8")
    prompts = read_prompts(tmp_path / "prompts.jsonl", {})
    assert [draw(), draw()] == [1, 0]
    for path in pictures:
        Image.new("L", (8, 8), 9).save(path)
        assert [draw(), draw()] == [1, 0], path
    assert [draw("rapidocr"), draw("own"), draw("own")] == [1, 1, 0]


@pytest.mark.process
def test_a_folder_that_another_command_draws_into_is_refused(pipeline, prompts, tmp_path):
    code = (
        "import sys; from pathlib import Path; from distill.checkpoint.run_lock import RunLock; "
        "lock = RunLock(Path(sys.argv[1])); lock.take(); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert other.stdin is not None and other.stdout is not None and other.stdout.readline()
    with pytest.raises(ValueError, match=rf"out: in use by process {other.pid} on .*; .* or choose another --out$"):
        draw_all(pipeline, prompts, tmp_path / "out")
    assert pipeline.drawn == [] and not (tmp_path / "out" / "results.jsonl").exists()
    other.communicate(b"")
    assert draw_all(pipeline, prompts, tmp_path / "out")[0] == 0 and pipeline.drawn == ["a", "b", "c"]


def test_a_prompt_that_cannot_be_drawn_does_not_stop_the_others(pipeline, prompts, tmp_path):
    def refuse(prompt: str) -> None:
        if prompt == "b":
            raise ValueError("mask: empty")

    pipeline.stop = refuse
    failed, said = draw_all(pipeline, prompts, tmp_path / "out")
    assert failed == 1 and "prompts.jsonl prompt000003: mask: empty" in said and pipeline.drawn == ["a", "c"]
    assert results(tmp_path / "out")[1]["error"] == "mask: empty"
    pipeline.stop = lambda prompt: None
    assert draw_all(pipeline, prompts, tmp_path / "out")[0] == 0 and pipeline.drawn == ["a", "c", "b"]


def test_a_full_disk_leaves_whole_lines_and_pictures(pipeline, prompts, tmp_path, monkeypatch):
    save = Image.Image.save

    def full(image: Image.Image, file: Path, **settings: object) -> None:
        save(image, file, **settings)
        if "prompt000003-1" in file.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left.*prompt000003-1-student-phased-4.png"):
        draw_all(pipeline, prompts, tmp_path / "out")
    hidden = [path.name for path in (tmp_path / "out").glob(".*")]
    assert len(results(tmp_path / "out")) == 1 and hidden == [".lock"]
    monkeypatch.setattr(Image.Image, "save", save)
    draw_all(pipeline, prompts, tmp_path / "out")
    assert pipeline.drawn == ["a", "b", "b", "c"] and len(results(tmp_path / "out")) == 3


def test_a_line_that_was_cut_off_is_removed_and_other_files_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"name": "a", "digest": "1", "pictures": []}\n{"name": "b", "dig', encoding="utf-8")
    ResultLog(path).append({"name": "c"})
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["a", "c"]
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"results.jsonl line 1: no result of this command; name another --out"):
        ResultLog(path)


def test_pictures_without_settings_have_none(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    save_png(Image.new("RGB", (2, 2)), tmp_path / "c.png", {"prompt": "你好"})
    assert [read_metadata(tmp_path / f"{name}.png") for name in "abc"] == [{}, {}, {"prompt": "你好"}]


def test_progress():
    assert progress_bar(0, 3, 4) == "[....] 0/3" and progress_bar(3, 3, 4) == "[####] 3/3"
    assert [duration(s) for s in (0.4, 59.4, 60, 3599, 3600 * 5 + 61)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "5 h 1 min",
    ]
