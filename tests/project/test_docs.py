"""Documents name tests and recipe keys that exist."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass

from anytext2.data.options import OPTIONS
from distill.adapters.lora import KINDS
from distill.adapters.targets import TARGET_PRESETS
from distill.config.schema import Recipe
from distill.optim.optimizers import OPTIMIZERS
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
        shown = str(default).lower() if isinstance(default, bool) else default
        values = option.range or {bool: "true, false"}.get(type(option.default), "any number")
        rows.append(f"| `{name}` | `{shown}` | {values} | {option.help} |")
    table = "\n".join(rows)
    assert table in (TESTS.parent / "docs" / "DATA.md").read_text(encoding="utf-8"), f"docs/DATA.md needs:\n{table}"
