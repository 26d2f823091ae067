"""The results that the page has drawn: the last ten, in a folder, readable after the page was started again.

A result is its PNGs, each with its settings in it, and NAME.json: the line that `PromptDrawing` gives, and the form
that it was drawn from. The JSON is written last; pictures without it are those of a drawing that was stopped.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytext2.core.files import fsync, whole_file

KEPT = 10
_NAME = re.compile(r"\d{8}-\d{6}-\d+")


@dataclass(frozen=True)
class StoredResult:
    """name: of its files. entry: as in results.jsonl. form: the fields of the page."""

    name: str
    entry: dict[str, Any]
    form: dict[str, Any]


class ResultStore:
    """folder: where the results are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._forget(self._names())

    def new_name(self) -> str:
        """A name that no result has, later in order than the others."""
        began = time.strftime("%Y%m%d-%H%M%S")
        found = (_NAME.match(file.name) for file in self.folder.glob(f"{began}-*"))
        return f"{began}-{1 + max((_age(name[0])[1] for name in found if name), default=-1)}"

    def add(self, name: str, entry: dict[str, Any], form: dict[str, Any]) -> StoredResult:
        """Keeps a result whose pictures are in the folder, and removes those before the last ten."""
        with whole_file(self.folder / f"{name}.json") as file:
            file.write_text(json.dumps({"entry": entry, "form": form}, ensure_ascii=False), encoding="utf-8")
            fsync(file)
        self._forget(self._names())
        return StoredResult(name, entry, form)

    def get(self, name: str) -> StoredResult | None:
        """The result of a name; None where it is not kept, or cannot be read."""
        if not _NAME.fullmatch(name):
            return None
        try:
            content = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            return StoredResult(name, content["entry"], content["form"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def last(self) -> list[StoredResult]:
        """The last ten, the newest first."""
        found = map(self.get, self._names()[:KEPT])
        return [result for result in found if result is not None]

    def discard(self, name: str) -> None:
        """Removes what a drawing has left that was stopped."""
        for file in self.folder.glob(f"{name}-*.png"):
            file.unlink(missing_ok=True)

    def _names(self) -> list[str]:
        """The newest first."""
        return sorted((f.stem for f in self.folder.glob("*.json") if _NAME.fullmatch(f.stem)), key=_age, reverse=True)

    def _forget(self, names: list[str]) -> None:
        """Removes files of this store that belong to no result of the last ten."""
        kept = set(names[:KEPT])
        for file in self.folder.iterdir():
            name = _NAME.match(file.name)
            if name and name[0] not in kept and file.suffix in (".json", ".png"):
                file.unlink(missing_ok=True)


def _age(name: str) -> tuple[str, int]:
    began, _, number = name.rpartition("-")
    return began, int(number)
