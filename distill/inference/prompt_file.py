"""Draws many prompts from a file of JSON lines, so that it can be stopped and started again at any time.

In the output folder are the pictures and `results.jsonl`, a line for each prompt. A prompt's pictures are complete
before its line is written, and a prompt that has a line with the same settings is not drawn again. A prompt whose
settings have changed is drawn again, and gets another line, which counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anytext2.core.files import fsync, whole_file
from distill.checkpoint.formats import ADAPTER_WEIGHTS
from distill.checkpoint.run_lock import RunLock
from distill.inference.loading import SamplingModel
from distill.inference.pipeline import AnyText2Pipeline, StepCallback
from distill.inference.request import DrawingRequest, Imitation, request_from_json
from distill.inference.result import DrawingResult, PlacedLine

RESULTS = "results.jsonl"
METADATA = "anytext2_distill"
"""The PNG text field with the settings and results, as JSON."""

Judge = Callable[[Image.Image, Sequence[PlacedLine]], list[dict[str, Any]]]
"""What an OCR engine reads in the lines of a picture: {"text", "read", "exact"} each."""


@dataclass(frozen=True)
class Prompt:
    """A request and its name, with which its files begin."""

    name: str
    request: DrawingRequest


def read_prompts(file: Path, defaults: Mapping[str, Any]) -> list[Prompt]:
    """The prompts of a file, one JSON object or string a line; empty lines are skipped.

    defaults: settings of prompts that do not have their own. Raises ValueError, with the line, for a faulty one.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
        prompts.append(Prompt(f"prompt{number:06d}", request_from_json(item, where, defaults, file.parent)))
    if not prompts:
        raise ValueError(f"{file}: has no prompt; write one JSON object a line, as in {json.dumps(_EXAMPLE)}")
    return prompts


_EXAMPLE = {"prompt": 'a sign that reads "OPEN"', "seed": 1}


class ResultLog:
    """results.jsonl: whole lines, each on the disk before the next prompt is drawn."""

    def __init__(self, path: Path) -> None:
        """Reads what is there. A last line that was cut off, by a full disk or a crash, is removed."""
        self._path = path
        self._done: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                self._done[entry["name"]] = entry
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} line {number}: no result of this command; name another --out") from error

    def has(self, name: str, digest: str) -> bool:
        """Whether the prompt was drawn with these settings and its pictures are there."""
        entry = self._done.get(name, {})
        files = [picture["file"] for picture in entry.get("pictures", ())]
        return bool(files) and entry["digest"] == digest and all((self._path.parent / file).is_file() for file in files)

    def is_outdated(self, name: str, digest: str) -> bool:
        """Whether the prompt was drawn, but with other settings."""
        entry = self._done.get(name, {})
        return bool(entry.get("pictures")) and entry["digest"] != digest

    def append(self, entry: dict[str, Any]) -> None:
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("ab", buffering=0) as file:
                line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
                if file.write(line) != len(line):
                    raise OSError(28, "No space left on device", str(self._path))
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self._path, size)
            raise
        self._done[entry["name"]] = entry


def model_identity(model: SamplingModel) -> str:
    """A name of the weights that changes with them: the adapter's hash, or where the weights are."""
    base = f"{model.recipe.model.config} {model.recipe.model.weights}"
    if model.added is not None:
        base = f"{base} {model.added.identity()}"
    if model.checkpoint is not None and model.checkpoint.is_file():  # may be large
        facts = model.checkpoint.stat()
        return f"{base} {model.checkpoint} {facts.st_size} {facts.st_mtime_ns} {model.precision}"
    weights = None if model.checkpoint is None else model.checkpoint / ADAPTER_WEIGHTS
    if weights is None or not weights.is_file():
        return f"{base} {model.checkpoint or ''} {model.precision}".strip()
    return f"{base} {hashlib.sha256(weights.read_bytes()).hexdigest()[:16]} {model.precision}"


class PromptDrawing:
    """Draws prompts into a folder.

    judge: reads the pictures, None: they are not read. say: prints a line. circumstances: what the results depend on
    beside settings and weights, such as the OCR engine and how descriptions are translated.
    """

    def __init__(
        self,
        pipeline: AnyText2Pipeline,
        out: Path,
        judge: Judge | None,
        say: Callable[[str], None] = print,
        circumstances: Sequence[str | None] = (),
    ) -> None:
        self._pipeline, self._out, self._judge, self._say = pipeline, out, judge, say
        self._model, self._circumstances = model_identity(pipeline.model), list(circumstances)

    def draw_all(self, prompts: Sequence[Prompt], where: str) -> int:
        """Draws what is not drawn yet. Returns the number of prompts that cannot be drawn; they are tried next time.

        Raises ValueError where another command draws into the folder.
        """
        lock = RunLock(self._out, self._say, option="--out")
        lock.take()
        try:
            return self._draw_all(prompts, where)
        finally:
            lock.release()

    def _draw_all(self, prompts: Sequence[Prompt], where: str) -> int:
        log = ResultLog(self._out / RESULTS)
        digests = {prompt.name: self.digest(prompt.request) for prompt in prompts}
        todo = [prompt for prompt in prompts if not log.has(prompt.name, digests[prompt.name])]
        if len(todo) < len(prompts):
            self._say(f"{len(prompts) - len(todo)} of {len(prompts)} prompts are drawn already")
        if outdated := sum(log.is_outdated(prompt.name, digests[prompt.name]) for prompt in todo):
            self._say(f"drawn again, because settings, weights or files have changed: {outdated}")
        failed, began = 0, time.monotonic()
        for number, prompt in enumerate(todo, 1):
            entry = self._recovered(prompt)
            if entry is None:
                try:
                    entry = self.draw(prompt)
                except ValueError as error:
                    failed += 1
                    entry = {"name": prompt.name, "digest": self.digest(prompt.request), "error": str(error)}
                    self._say(f"{where} {prompt.name}: {error}")
            log.append(entry)
            left = (time.monotonic() - began) / number * (len(todo) - number)
            words = [prompt.name, *verdicts(entry), f"{duration(left)} left"]
            self._say(f"{progress_bar(number, len(todo))} {', '.join(words)}")
        return failed

    def draw(self, prompt: Prompt, on_step: StepCallback | None = None) -> dict[str, Any]:
        """Draws one prompt and writes its pictures. Returns the line of results.jsonl."""
        result = self._pipeline.draw(
            prompt.request, on_step, on_warning=lambda note: self._say(f"{prompt.name}: {note}")
        )
        entry, images = self._entry(prompt, result)
        for picture, image in zip(entry["pictures"], images, strict=True):
            save_png(image, self._out / picture["file"], entry)
        return entry

    def digest(self, request: DrawingRequest) -> str:
        """Changes with everything that the pictures depend on, and with who reads them."""
        files = [hashlib.sha256(file.read_bytes()).hexdigest() for file in _named_files(request)]
        settings = [self._model, self._circumstances, self._judge is not None, request.to_json(), files]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]

    def _entry(self, prompt: Prompt, result: DrawingResult) -> tuple[dict[str, Any], list[Image.Image]]:
        """The line of results.jsonl, and the pictures in its order."""
        pictures, images = [], []
        for row in result.rows:
            for number, image in enumerate(row.images):
                facts: dict[str, Any] = {"file": f"{prompt.name}-{number}-{row.spec.key}.png", **row.to_json()}
                if self._judge is not None:
                    facts["ocr"] = self._judge(image, result.lines)
                pictures.append(facts)
                images.append(image)
        request = prompt.request
        entry = {"name": prompt.name, "digest": self.digest(request), "model": self._model, **result.to_json()}
        return entry | {"settings": request.to_json(), "pictures": pictures}, images

    def _recovered(self, prompt: Prompt) -> dict[str, Any] | None:
        """The line of a prompt whose pictures were complete when the command was killed; None if it is to be drawn."""
        for path in sorted(self._out.glob(f"{prompt.name}-*.png")):
            entry = read_metadata(path)
            if entry.get("digest") == self.digest(prompt.request):
                files = [self._out / picture["file"] for picture in entry["pictures"]]
                complete = all(read_metadata(file).get("digest") == entry["digest"] for file in files)
                return entry if complete else None
        return None


def _named_files(request: DrawingRequest) -> list[Path]:
    """The pictures and font files that a request names."""
    fonts = [font.image if isinstance(font, Imitation) else font for font in request.fonts]
    given = [source for source in (request.image, request.mask, *fonts) if isinstance(source, str | Path) and source]
    return [path for path in map(Path, given) if path.is_file()]


def save_png(image: Image.Image, path: Path, entry: Mapping[str, Any]) -> None:
    """Writes a PNG with settings and results in it, whole or not at all."""
    info = PngInfo()
    info.add_itxt(METADATA, json.dumps(entry, ensure_ascii=False))
    try:
        with whole_file(path) as file:
            image.save(file, pnginfo=info)
            fsync(file)
    except OSError as error:  # Pillow's names no file
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_metadata(path: Path) -> dict[str, Any]:
    """What `save_png` wrote into a PNG beside the picture; empty where there is nothing."""
    try:
        with Image.open(path) as image:
            content = json.loads(image.info.get(METADATA, "{}"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def verdicts(entry: Mapping[str, Any]) -> list[str]:
    """What was read of a prompt, for each way of sampling, as in `student 2 of 3 right`."""
    read: dict[str, list[bool]] = {}
    for picture in entry.get("pictures", ()):
        read.setdefault(picture["role"], []).extend(line["exact"] for line in picture.get("ocr", ()))
    return [f"{role} {sum(lines)} of {len(lines)} right" for role, lines in read.items() if lines]


def progress_bar(done: int, total: int, width: int = 20) -> str:
    """As in `[#####.....] 5/10`."""
    full = width * done // max(1, total)
    return f"[{'#' * full}{'.' * (width - full)}] {done}/{total}"


def duration(seconds: float) -> str:
    """A time in two units at most, as in `3 min 20 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
