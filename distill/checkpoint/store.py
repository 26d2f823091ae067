"""Atomic checkpoints: a folder is complete or absent, at whatever moment a process is killed.

    run/latest                      name of the checkpoint that was completed last
    run/best                        name of the best one so far, and its score on a second line
    run/checkpoint-N/               files of distill/checkpoint/formats.py
    run/checkpoint-N/manifest.json  size and SHA-256 of every other file; written last

Order of a save: everything into a hidden folder, each file synced, the manifest, one rename, `latest`, and only then
the older ones are removed. A process killed at any point leaves a complete checkpoint. Only one process of a run
(rank 0) calls `save_checkpoint`; gathering the tensors is its caller's business.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from anytext2.core.files import fsync

MANIFEST = "manifest.json"
LATEST = "latest"
BEST = "best"

_REPLACED = ".replaced"
_NAME = re.compile(rf"checkpoint-(\d+)({re.escape(_REPLACED)})?")
_HASH_BLOCK = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete or does not fit; the message is one line."""


def save_checkpoint(
    run_dir: Path, step: int, write: Callable[[Path], None], keep: int, best_score: float | None = None
) -> Path:
    """Writes `run_dir/checkpoint-<step>` through `write(folder)` and returns its path, once it is complete on disk.

    A checkpoint of the same step is replaced. Complete ones beyond the `keep` newest are removed (the one just written
    and the best one never are); incomplete ones are left for a person to look at. If `write` raises, or the disk is
    full (OSError), what was there is as it was. best_score: given where it is the best so far.
    """
    if keep < 1:
        raise ValueError(f"checkpoint.keep={keep} must be at least 1")
    assert step >= 0, step
    run_dir.mkdir(parents=True, exist_ok=True)
    for leftover in run_dir.glob(".checkpoint-*.tmp"):
        shutil.rmtree(leftover)
    target = run_dir / f"checkpoint-{step}"
    temporary = run_dir / f".{target.name}.tmp"
    temporary.mkdir()
    try:
        write(temporary)
        _write_manifest(temporary, step)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _publish(temporary, target)
    if best_score is not None:
        mark_best(run_dir, target.name, best_score)
    write_text_atomically(run_dir / LATEST, target.name + "\n")
    _remove_old(run_dir, target, keep)
    return target


def mark_best(run_dir: Path, name: str, score: float) -> None:
    """Names the complete checkpoint `run_dir/name` in `run_dir/best`, which keeps it from being removed.

    The caller waits for a checkpoint that is being written. Raises CheckpointError where it is not complete.
    """
    if not math.isfinite(score):
        raise ValueError(f"{run_dir / BEST}: score {score} of {name} is not a number to compare by")
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{run_dir / BEST}: {name!r} is not the name of a checkpoint, as in checkpoint-100")
    verify_checkpoint(run_dir / name, hashes=False)
    write_text_atomically(run_dir / BEST, f"{name}\n{score!r}\n")


def find_checkpoint(path: Path, say: Callable[[str], None] = print) -> Path:
    """The checkpoint that `path` is or points to (`run/latest`, `run/best`), or a run folder's newest complete one.

    In a run folder what `latest` names comes first, then the others, highest step first. Each one passed over is
    reported through `say` with the reason. Raises CheckpointError where none is complete, or where the one that `path`
    means is broken.
    """
    if path.name in (LATEST, BEST) and path.is_file():
        named = _read_pointer(path)
        if named is None:
            raise CheckpointError(f"{path}: names no checkpoint")
        verify_checkpoint(path.parent / named)
        return path.parent / named
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a checkpoint-N folder or the run folder that holds it")
    if _NAME.fullmatch(path.name) or (path / MANIFEST).exists():
        verify_checkpoint(path)
        return path
    candidates = _candidates(path, say)
    for candidate in candidates:
        try:
            verify_checkpoint(candidate)
        except CheckpointError as error:
            say(f"checkpoint skipped: {error}")
            continue
        return candidate
    raise CheckpointError(f"{path}: no complete checkpoint-N in this folder ({len(candidates)} incomplete)")


def verify_checkpoint(path: Path, hashes: bool = True) -> None:
    """Checks every file of the checkpoint against its manifest (`hashes=False`: sizes only, without reading them).

    Files that the manifest does not name are allowed. Raises CheckpointError naming the first file that is wrong.
    """
    for name, entry in _read_manifest(path).items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing, although {MANIFEST} lists it")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{file}: {size} bytes, {MANIFEST} says {entry['bytes']}")
        try:
            same = not hashes or _sha256(file) == entry["sha256"]
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
        if not same:
            raise CheckpointError(f"{file}: content differs from the SHA-256 in {MANIFEST}")


def write_text_atomically(path: Path, text: str) -> None:
    """Replaces the file by `text` (UTF-8): a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        fsync(temporary)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError where there is none."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not a {type(content).__name__}")
    return content


def _publish(temporary: Path, target: Path) -> None:
    """Gives the complete folder its name. An older one of that name stays findable until the new one stands."""
    aside = target.with_name(target.name + _REPLACED)
    if target.exists():
        if aside.exists():
            shutil.rmtree(aside)
        os.rename(target, aside)
    os.rename(temporary, target)
    fsync(target.parent)
    if aside.exists():
        shutil.rmtree(aside)


def _write_manifest(folder: Path, step: int) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise ValueError(f"{folder}: nothing was written into the checkpoint")
    entries = {}
    for path in paths:
        fsync(path)
        entries[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    for subfolder in (path for path in folder.rglob("*") if path.is_dir()):
        fsync(subfolder)
    write_text_atomically(folder / MANIFEST, json.dumps({"format": 1, "step": step, "files": entries}, indent=1) + "\n")


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{path}: incomplete, it has no {MANIFEST}")
    content = read_json(manifest)
    files = content.get("files")
    well_formed = isinstance(files, dict) and all(
        isinstance(e, dict) and {"bytes", "sha256"} <= set(e) for e in files.values()
    )
    if content.get("format") != 1 or not files or not well_formed:
        raise CheckpointError(f"{manifest}: not a manifest of format 1 with sizes and SHA-256 of the files")
    return files


def _read_pointer(pointer: Path) -> str | None:
    """The checkpoint's name in a pointer file; None where there is no file, or something else in it."""
    if not pointer.is_file():
        return None
    first = pointer.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    return first if _NAME.fullmatch(first) else None


def _candidates(run_dir: Path, say: Callable[[str], None]) -> list[Path]:
    ordered = _by_step(run_dir)
    latest = run_dir / LATEST
    if latest.is_file():
        named = _read_pointer(latest)
        if named is None or not (run_dir / named).is_dir():
            say(f"checkpoint skipped: {latest}: names {named or 'no checkpoint'}, which is not there")
        ordered.sort(key=lambda path: path.name != named)  # stable: only the named one moves, to the front
    return ordered


def _by_step(run_dir: Path) -> list[Path]:
    """All checkpoint folders, highest step first; one that is being replaced comes after its replacement."""
    found = [(match, path) for path in run_dir.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda item: (-int(item[0][1]), item[0][2] is not None))
    return [path for _, path in found]


def _remove_old(run_dir: Path, newest: Path, keep: int) -> None:
    best = _read_pointer(run_dir / BEST)
    others = [path for path in _by_step(run_dir) if path != newest and _has_all_files(path)]
    for path in others[keep - 1 :]:
        if path.name == best:
            continue
        # Without its manifest it counts as incomplete from the first moment of the removal on.
        (path / MANIFEST).unlink()
        shutil.rmtree(path)


def _has_all_files(path: Path) -> bool:
    try:
        verify_checkpoint(path, hashes=False)
    except CheckpointError:
        return False
    return True


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
