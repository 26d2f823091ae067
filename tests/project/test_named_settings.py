"""What the documents for users say to type exists: commands, options, recipe keys with their values, files, targets."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import pytest

from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import Recipe
from distill.objectives import OBJECTIVES
from tests.helpers.command_lines import SCRIPTS, Command, load_command
from tests.helpers.paths import ROOT

DOCUMENTS = ("docs/TROUBLESHOOTING.md", "docs/ANYWORD.md", "docs/DATA.md", "docs/DRAWING.md", "README.md")
"""The Chinese ones have the same code: tests/project/test_translations.py."""
FOREIGN_OPTIONS = {"--num_gpus", "--help", "--launcher", "--array", "--signal"}
"""Of deepspeed, argparse and SLURM."""
SECTIONS = "|".join(name for name in Recipe.__dataclass_fields__ if name not in ("name", "run_root", "seed"))
SETTING = re.compile(rf"(?:{SECTIONS})(?:\.\w+)+=\S+")


@lru_cache
def command_of(script: str) -> Command:
    return load_command(ROOT / script)


@lru_cache
def known_options() -> frozenset[str]:
    parsers = [command_of(str(script.relative_to(ROOT))).parser for script in SCRIPTS.values()]
    return frozenset(name for parser in parsers for action in parser._actions for name in action.option_strings)


def command_lines(text: str) -> list[str]:
    """The lines of bash blocks that start one of the console scripts."""
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines()
    scripts = [str(script.relative_to(ROOT)) for script in SCRIPTS.values()]
    return [line.split("  #")[0] for line in lines if any(f" {script} " in line for script in scripts)]


def spans(text: str) -> list[str]:
    """Code within a line."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def check_recipe(settings: list[str], config: Path | None = None) -> None:
    """Raises ValueError for keys and values that no recipe can have; a store is there for what needs one.

    An option of another objective than the recipe's is one of the objective that has it.
    """
    settings = ["data.cache=features.lmdb", *settings]
    other = [name for name in OBJECTIVES if any(option_of(setting) in fields_of(name) for setting in settings)]
    named = any(setting.startswith("objective.name=") for setting in settings)
    load_recipe(config or DEFAULT_RECIPE, settings if named or not other else [*own(other), *settings])


def own(names: list[str]) -> list[str]:
    """The override for the recipe's own objective if it is among them, else for the first."""
    usual = load_recipe(DEFAULT_RECIPE).objective["name"]
    return [] if usual in names else [f"objective.name={names[0]}"]


def option_of(setting: str) -> str:
    """The option of an objective that a setting is for, or ''."""
    found = re.match(r"objective\.(\w+)", setting)
    return found[1] if found and found[1] != "name" else ""


def fields_of(objective: str) -> set[str]:
    return {field.name for field in fields(OBJECTIVES[objective].Config)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_can_be_parsed(document: str) -> None:
    for line in command_lines((ROOT / document).read_text(encoding="utf-8")):
        words = shlex.split(line)
        if words[0] == "sbatch":
            words = shlex.split(words[words.index("--wrap") + 1])
        elif "&" in words or "oom_guard.py" in line:
            continue  # a shell's background job; a command in a command
        (number, script), *_ = [(n, word) for n, word in enumerate(words) if word.startswith("launch/")]
        args = command_of(script).parse(words[number + 1 :])
        given = [word for word in words[number + 1 :] if SETTING.fullmatch(word)]
        check_recipe(given, getattr(args, "config", None))


@pytest.mark.heavy
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_setting_option_file_and_target_in_a_line_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for span in spans(text):
        words = span.split()
        if all(SETTING.fullmatch(word.strip("'")) for word in words):
            check_recipe([word.strip("'") for word in words])
        elif re.match(r"--[a-z]", span):
            assert re.split(r"[ =]", span)[0] in known_options() | FOREIGN_OPTIONS, f"{document}: {span}"
        elif words[0] == "make":
            assert words[1] in targets, f"{document}: {span}"
        elif re.fullmatch(r"(?:launch|ds_configs|fonts|anytext2|distill|tests)/[\w./-]*", span):
            assert (ROOT / span).exists(), f"{document}: {span}"
