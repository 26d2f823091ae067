"""Documents name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
NAMED = re.compile(r"`(?:tests/)?(test_\w+\.py)(?:::(test_\w+))?`")


def test_every_test_that_a_document_names_exists() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((TESTS.parent / "docs").glob("*.md")))
    named = NAMED.findall(text)
    assert len(named) > 15
    for file, function in named:
        source = (TESTS / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, f"{file}::{function}"
