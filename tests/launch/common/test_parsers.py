"""Command lines: `--help` needs nothing heavy, and five commands understand the same options in the same way."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from anytext2.data.options import OPTIONS
from distill.config.recipes import DEFAULT_RECIPE
from distill.config.schema import Recipe
from distill.evaluation.evaluate import EvaluationConfig
from distill.inference import loading
from launch.common import parsers, tool_parsers
from launch.common.data_options import recipe_line, resolve_data, resolve_recipe
from tests.helpers.paths import ROOT

COMMANDS = (
    *("train", "infer", "evaluate", "check_dataset", "show_dataset", "build_lmdb_cache"),
    *(
        "make_dataset",
        "make_teacher",
        "merge_adapters",
        "quantize",
        "export_weights",
        "sync_tracking",
        "oom_guard",
        "slurm/submit",
    ),
)
HEAVY = {"torch", "deepspeed", "mlflow", "peft", "open_clip", "cv2", "lmdb", "transformers"}
HELP = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
    print(script, sorted(set(sys.modules) & HEAVY))
"""


@pytest.mark.process
def test_help_imports_nothing_heavy() -> None:
    scripts = [str(ROOT / "launch" / f"{name}.py") for name in COMMANDS]
    code = HELP.replace("HEAVY", repr(HEAVY))
    done = subprocess.run([sys.executable, "-c", code, *scripts], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith(str(ROOT))]
    assert found == [f"{script} []" for script in scripts]
    for command in ("check_dataset.py", "train.py"):  # the options' table is a part of it
        assert f"{command}" in done.stdout and done.stdout.count("side of the picture in pixels") >= 6


def help_of(parse: Callable[[Sequence[str]], Any], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_what_the_light_modules_repeat_is_what_the_heavy_ones_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsers.EMBEDDED_RECIPE == DEFAULT_RECIPE
    shown, defaults = re.sub(r"\s+", " ", help_of(parsers.parse_evaluate, capsys)), EvaluationConfig()
    for role in ("teacher", "undistilled", "student"):
        steps = ",".join(map(str, getattr(defaults, f"{role}_steps")))
        assert f"--{role}-steps N,N default: {steps}" in shown
    assert f"pictures sampled together; default: {defaults.batch}" in shown
    assert f"pictures in grid.png; default: {defaults.shown}" in shown
    assert f"--ocr-threads N default: {defaults.ocr_threads}" in shown
    drawn = tool_parsers.parse_make_dataset(["--out", "x", "--count", "1"])
    assert (drawn.size, drawn.latin_height, drawn.format) == (128, 40, "png")


@pytest.mark.parametrize("parse", [parsers.parse_check_dataset, parsers.parse_train, parsers.parse_infer])
def test_help_lists_every_option_with_its_values(parse: Any, capsys: pytest.CaptureFixture[str]) -> None:
    table = help_of(parse, capsys).split("data.options, as in ")[1].splitlines()
    recipe = resolve_recipe(None)
    for name, documented in OPTIONS.items():
        (row,) = [line for line in table if line.split()[:1] == [name]]
        assert row.endswith(documented.help) and documented.range in row
        value = getattr(recipe.data.options, name)
        if value != documented.default and isinstance(value, int | float) and not isinstance(value, bool):
            assert f" {value} " in row  # of the embedded recipe


class Captured(Exception):
    """Ends a command when its recipe is known."""


def recipe_of_infer(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> Recipe:
    args, found = parsers.parse_infer(argv), []
    real = loading.load_recipe

    def capture(*arguments: Any) -> Recipe:
        found.append(real(*arguments))
        return found[-1]

    def stop(*_: Any) -> None:
        raise Captured

    monkeypatch.setattr(loading, "load_recipe", capture)
    monkeypatch.setattr(loading, "make_model", stop)
    with pytest.raises(Captured):
        loading.load_sampling_model(args.checkpoint, args.config, args.overrides)
    return found[-1]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["data.options.resolution=256"],
        ["--config", "{recipes}/rtx4090x3.yaml", "data.options.max_lines=2"],
        ["--config", "{file}", "data.options.ink_threshold=0.25", "data.max_faulty=0.5", "seed=3"],
        ["data.options={resolution: 64, font_hint_area: [0.5, 1.0]}"],
        ["--config", "tiny_student.yaml"],
    ],
)
def test_five_commands_see_the_same_options(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.json").write_text("{}")
    file = tmp_path / "mine.yaml"
    file.write_text("data: {options: {max_chars: 7}}\nobjective: {name: consistency}\n")
    words = [word.replace("{recipes}", str(DEFAULT_RECIPE.parent)).replace("{file}", str(file)) for word in words]
    data = str(tmp_path / "data.json")
    args = parsers.parse_train(["--deepspeed", "x.json", *words])
    trained = resolve_recipe(args.config, args.overrides)
    found = {"infer": recipe_of_infer(words, monkeypatch)}
    for name, parse, more in (
        ("check", parsers.parse_check_dataset, []),
        ("show", parsers.parse_show_dataset, ["--out", "x"]),
        ("cache", parsers.parse_build_cache, ["--out", "x"]),
    ):
        sources, found[name] = resolve_data(parse([data, *more, *words]))
        assert sources == [Path(data)] and recipe_line(trained, args.config) in capsys.readouterr().out
    assert all(recipe == trained for recipe in found.values())


def test_short_names_are_those_of_data_options() -> None:
    short, full = (
        resolve_data(parsers.parse_check_dataset([str(DEFAULT_RECIPE), *words]))[1]
        for words in (["resolution=256", "max_lines=1"], ["data.options.resolution=256", "data.options.max_lines=1"])
    )
    assert short == full and short.data.options.resolution == 256


def test_the_old_name_of_config_is_read_with_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(DEFAULT_RECIPE)
    old = resolve_data(parsers.parse_check_dataset([recipe, "--recipe", recipe]))
    assert capsys.readouterr().err == "--recipe is now --config\n"
    assert old == resolve_data(parsers.parse_check_dataset([recipe, "--config", recipe]))
    with pytest.raises(ValueError, match="--recipe is the old name of --config"):
        resolve_data(parsers.parse_check_dataset([recipe, "--config", recipe, "--recipe", recipe]))


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"data\.options\.max_line: no such key, nearest is data\.options\.max_lines"):
        resolve_data(parsers.parse_check_dataset(["x.json", "max_line=2"]))
