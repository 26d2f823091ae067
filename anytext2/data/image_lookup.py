r"""Finds the picture file of a record whose name is spelled otherwise on the disk, or says what is there instead.

Other spellings that are tried: `/` for the `\` of Windows, and the Unicode forms NFC and NFD (macOS decomposes
letters with accents). Another case, another ending or a wrong encoding is only suggested: it may be another picture.
Nothing here runs as long as files have the names that the annotations give them.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePath, PureWindowsPath

from anytext2.core.batch import Record

_LISTED = 50_000  # most entries of a folder that are looked at
_COMPARED = 300  # most names that are compared letter by letter, of a folder in alphabetical order
_WRONG_ENCODINGS = ("cp1252", "latin-1", "cp437", "gb18030", "cp932", "big5")


@dataclass(frozen=True)
class FoundImage:
    """The file of a record. spelling: what is different in its name; empty if nothing is."""

    path: Path
    spelling: str = ""


def find_image(record: Record) -> FoundImage | None:
    """The picture file of a record under its own name or another spelling of it, below `data_root`; None if missing."""
    if os.path.exists(record.image_path):
        return FoundImage(record.image_path)
    root, name = _root_and_name(record)
    inside = parts_below(name)
    if inside is None:
        return None
    differences = ["/ for \\"] if "\\" in name else []
    folder = _existing_root(root, differences)
    path = None if folder is None else _other_spelling(folder, inside, differences)
    return None if path is None else FoundImage(path, " and ".join(dict.fromkeys(differences)) or "no . or .. in it")


def parts_below(name: str) -> Sequence[str] | None:
    r"""The folders and the file of a picture's name, `\` read as `/`; None if it is not below `data_root`."""
    name = name.replace("\\", "/")
    parts = PurePath(os.path.normpath(name)).parts
    is_outside = name.startswith("/") or name[1:3] == ":/" or not parts or parts[0] == ".."
    return None if is_outside else parts


def describe_missing(record: Record) -> str:
    """Where the picture of a record was looked for, and the nearest name there; one line."""
    root, name = _root_and_name(record)
    place, rest = _existing_root(root, []), [*(parts_below(name) or (name,))]
    if place is None:
        return f"data_root {root} is no folder{_nearest_folder(root)}"
    while len(rest) > 1 and (place / rest[0]).is_dir():
        place /= rest.pop(0)
    near = nearest_name(place, rest[0])
    others = f"nearest there: {near!r}" if near else f"none of its {len(_listing(place).names)} names is similar"
    return f"no {rest[0]!r} in {place}, {others}; data_root is {root}"


def nearest_name(folder: Path, name: str) -> str:
    """The name in a folder that a person may have meant; empty if none is similar."""
    found = _listing(folder)
    for meant in _misread(name):
        if found.by_case.get(meant.casefold()) == meant:
            return meant
    first = max(0, min(bisect_left(found.names, name) - _COMPARED // 2, len(found.names) - _COMPARED))
    by_letters = difflib.get_close_matches(name, found.names[first : first + _COMPARED], 1)
    return found.by_case.get(name.casefold()) or found.by_stem.get(_stem(name)) or "".join(by_letters)


def _nearest_folder(root: Path) -> str:
    """The folder in the nearest existing parent of a missing `root` that may have been meant."""
    while not root.parent.is_dir():
        root = root.parent
    near = nearest_name(root.parent, PureWindowsPath(root.name).name)
    return f", nearest in {root.parent}: {near!r}" if near else ""


def _root_and_name(record: Record) -> tuple[Path, str]:
    """`data_root` and the name below it. A record whose file lies elsewhere has the file's folder and name."""
    path, parts = record.image_path, PurePath(record.name).parts
    if parts and path.parts[-len(parts) :] == parts and len(parts) < len(path.parts):
        return path.parents[len(parts) - 1], record.name
    return path.parent, path.name


def _existing_root(root: Path, differences: list[str]) -> Path | None:
    """The folder `data_root` under its own name or another spelling; what differs is appended."""
    if root.is_dir():
        return root
    plain = Path(str(root).replace("\\", "/"))
    differences += ["/ for \\ in data_root"] if plain != root else []
    found = _other_spelling(Path(plain.anchor), plain.relative_to(plain.anchor).parts, differences)
    return found if found is not None and found.is_dir() else None


def _other_spelling(folder: Path, parts: Sequence[str], differences: list[str]) -> Path | None:
    """The file `parts` below an existing folder, each part as it is, in NFC or in NFD; what differs is appended."""
    for part in parts:
        forms = ((form, folder / unicodedata.normalize(form, part)) for form in ("NFC", "NFD"))
        spelled = next((form for form in (("", folder / part), *forms) if os.path.exists(form[1])), None)
        if spelled is None:
            return None
        differences += [f"Unicode form {spelled[0]}"] if spelled[0] else []
        folder = spelled[1]
    return folder


def _misread(name: str) -> Iterator[str]:
    """What a file may be called if its name, or the annotation's, went through a wrong encoding on the way."""
    for wrong in _WRONG_ENCODINGS:
        for written, read in ((wrong, "utf-8"), ("utf-8", wrong), (wrong, "cp437"), ("cp437", wrong)):
            try:
                meant = name.encode(written).decode(read)
            except UnicodeError:
                continue
            yield from (unicodedata.normalize(form, meant) for form in ("NFC", "NFD"))
        yield os.fsdecode(name.encode(wrong, "replace"))  # of a disk whose names are not UTF-8


@dataclass(frozen=True)
class _Listing:
    """Sorted names in a folder (of a very large one, some of them), by themselves without case, and without ending."""

    names: Sequence[str]
    by_case: dict[str, str]
    by_stem: dict[str, str]


@lru_cache(maxsize=16)
def _listing(folder: Path) -> _Listing:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, _LISTED))
    except OSError:
        names = []
    return _Listing(names, {name.casefold(): name for name in names}, {_stem(name): name for name in names})


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].casefold()
