"""Chinese documents keep in step with the English ones: headings, commands, tables and code, section by section."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PAIRS = {
    "README.md": "README.zh-CN.md",
    **{
        f"docs/{path.name}": f"docs/zh/{path.name}"
        for path in sorted((ROOT / "docs" / "zh").glob("*.md"))
        if (ROOT / "docs" / path.name).exists()
    },
}
TRANSLATED = {"README.md", "docs/DATA.md", "docs/TROUBLESHOOTING.md", "docs/FEATURES.md"}
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """What lies below one heading, without what a translation changes. rows: columns of each row of its tables."""

    level: int
    blocks: list[str]
    rows: list[int]
    code: Counter[str]
    items: int


def sections(text: str) -> list[Section]:
    """The sections of a document, in order; the first is what comes before the first heading."""
    blocks = FENCED.findall(text)
    without = FENCED.sub("\x00", text)
    found, number = [], 0
    for part in re.split(r"^(?=#+ )", without, flags=re.MULTILINE):
        level = len(part) - len(part.lstrip("#"))
        own = blocks[number : number + part.count("\x00")]
        number += len(own)
        rows = [len(re.findall(r"(?<!\\)\|", line)) for line in part.splitlines() if line.startswith("|")]
        items = len(re.findall(r"^ *(?:[-*]|\d+\.) ", part, re.MULTILINE))
        found.append(Section(level, own, rows, code_in_lines(part), items))
    return found


def code_in_lines(text: str) -> Counter[str]:
    """Code within the lines; a translated document counts as the English one."""
    english = {translation: original for original, translation in PAIRS.items()}
    found = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text))
    return Counter(english.get(code, code) for code in found)


def links(text: str) -> list[str]:
    """Targets of links and pictures that are no addresses."""
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as they are on GitHub."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_promised_documents_are_translated() -> None:
    assert set(PAIRS) >= TRANSLATED


@pytest.mark.parametrize("english", PAIRS)
def test_a_translation_has_the_same_sections_commands_tables_and_code(english: str) -> None:
    one, other = (sections((ROOT / path).read_text(encoding="utf-8")) for path in (english, PAIRS[english]))
    for number, (ours, theirs) in enumerate(zip(one, other, strict=False)):
        where = f"{PAIRS[english]}, section {number} of {english}"
        assert ours.level == theirs.level, where
        assert ours.blocks == theirs.blocks, f"{where}: code blocks differ"
        assert ours.rows == theirs.rows, f"{where}: rows or columns of tables differ"
        assert ours.code == theirs.code, f"{where}: missing {ours.code - theirs.code}, more {theirs.code - ours.code}"
        assert ours.items == theirs.items, f"{where}: {ours.items} and {theirs.items} items of lists"
    assert len(one) == len(other)


@pytest.mark.parametrize("english", PAIRS)
def test_each_language_leads_to_the_other(english: str) -> None:
    for path, target in ((english, PAIRS[english]), (PAIRS[english], english)):
        top = (ROOT / path).read_text(encoding="utf-8").split("\n## ")[0]
        assert any((ROOT / path).parent.joinpath(link).resolve() == ROOT / target for link in links(top)), path


@pytest.mark.parametrize("path", [*PAIRS, *PAIRS.values(), "docs/ANYWORD.md"])
def test_links_lead_somewhere(path: str) -> None:
    file = ROOT / path
    for link in links(file.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (file.parent / name).resolve() if name else file
        assert target.exists(), f"{path}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path}: {link}"


def test_a_translation_links_to_translations_where_there_are_some() -> None:
    translated = {Path(ROOT / one).resolve(): other for one, other in PAIRS.items()}
    for english, path in PAIRS.items():
        for link in links((ROOT / path).read_text(encoding="utf-8")):
            target = (ROOT / path).parent.joinpath(link.partition("#")[0] or Path(path).name).resolve()
            assert target not in translated or target == ROOT / english, f"{path}: {link}, not {translated[target]}"
