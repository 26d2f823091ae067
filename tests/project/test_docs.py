"""Documents name tests and recipe keys that exist."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from anytext2.data.options import OPTIONS
from distill.adapters.lora import KINDS
from distill.adapters.targets import TARGET_PRESETS
from distill.config.recipes import DEFAULT_RECIPE
from distill.config.schema import Recipe
from distill.optim.optimizers import OPTIMIZERS
from launch.common import parsers
from launch.common.data_options import resolve_data, resolve_recipe
from tests.helpers.paths import ROOT

TESTS = ROOT / "tests"
NAMED = re.compile(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)(?:::(test_\w+))?`")
"""A test file, by its path from the root or from tests/, and one of its functions."""


def test_every_test_that_a_document_names_exists() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((TESTS.parent / "docs").glob("*.md")))
    named = NAMED.findall(text)
    assert len(named) > 15
    for file, function in named:
        source = (TESTS / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, f"{file}::{function}"


def test_every_recipe_key_that_a_document_names_exists() -> None:
    recipe = Recipe()
    sections = {f.name: getattr(recipe, f.name) for f in fields(recipe) if is_dataclass(getattr(recipe, f.name))}
    pattern = re.compile(rf"`((?:{'|'.join(sections)})(?:\.[a-z_]+)+)(?=[`=:])")
    unknown = set()
    for path in sorted((TESTS.parent / "docs").glob("*.md")):
        for key in pattern.findall(path.read_text(encoding="utf-8")):
            if key.endswith(".json"):
                continue  # a file of the run folder
            value: object = recipe
            for part in key.split("."):
                if not hasattr(value, part):
                    unknown.add(f"{path.name}: {key}")
                    break
                value = getattr(value, part)
    assert unknown == set()


def test_every_adapter_and_optimizer_is_documented() -> None:
    text = (TESTS.parent / "docs" / "DISTILLATION.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in (*KINDS, *TARGET_PRESETS, *OPTIMIZERS))


def test_every_option_of_samples_is_documented() -> None:
    """docs/DATA.md has the table that the options' own texts make."""
    rows = ["| key | default | values | effect |", "|---|---|---|---|"]
    for name, option in OPTIONS.items():
        default = list(option.default) if isinstance(option.default, tuple) else option.default
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        # Where nothing is the default, the option is a switch that follows another one.
        values = option.range or {bool: "true, false", type(None): "true, false"}.get(type(default), "any number")
        rows.append(f"| `{name}` | `{shown}` | {values} | {option.help} |")
    table = "\n".join(rows)
    assert table in (TESTS.parent / "docs" / "DATA.md").read_text(encoding="utf-8"), f"docs/DATA.md needs:\n{table}"


OF_DATA = {
    "check_dataset": parsers.parse_check_dataset,
    "show_dataset": parsers.parse_show_dataset,
    "build_lmdb_cache": parsers.parse_build_cache,
}


def test_commands_of_the_documents_that_read_the_same_data_agree_on_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one command checks, shows or stores is what a run with the same recipe is given."""
    monkeypatch.chdir(tmp_path)
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))))
    found = re.findall(r"^\.venv/bin/python launch/(check_dataset|show_dataset|build_lmdb_cache)\.py (.*)$", text, re.M)
    assert {name for name, _ in found} == set(OF_DATA)
    for name, words in found:
        args = OF_DATA[name](shlex.split(words))
        for item in args.items:
            if item.endswith(".json"):
                Path(item).parent.mkdir(parents=True, exist_ok=True)
                Path(item).write_text("{}")
        recipe = resolve_data(args)[1]
        options = [item for item in args.items if item.startswith("data.options.")]
        assert recipe.data.options == resolve_recipe(args.config, options).data.options, words
        assert args.config is not None or recipe.data.options == resolve_recipe(DEFAULT_RECIPE, options).data.options
