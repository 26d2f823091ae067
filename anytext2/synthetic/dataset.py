"""Writes synthetic datasets in the AnyWord annotation format.

Picture `index` of a dataset depends on (seed, index) only, not on the number of pictures, the workers or the machine.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import cv2

from anytext2.core.files import whole_file
from anytext2.synthetic.options import SyntheticConfig
from anytext2.synthetic.picture import draw_picture

__all__ = ["SyntheticConfig", "write_dataset"]


def write_dataset(
    out: str | Path, count: int, config: SyntheticConfig, seed: int, first_index: int = 0, workers: int = 1
) -> Counter[str]:
    """Writes pictures first_index .. first_index + count - 1 to out/imgs and their annotations to out/data.json.

    The pictures are drawn into a hidden folder and moved at the end, then data.json is replaced: where drawing is
    interrupted, `out` stays as it was. Returns the numbers of pictures, of lines, of lines by language and of pictures
    by background. Raises ValueError if `count` or `workers` is below 1.
    """
    if count < 1 or workers < 1:
        raise ValueError(f"count: {count}, workers: {workers}: both must be at least 1")
    out = Path(out)
    counts: Counter[str] = Counter()
    items = []
    with _hidden_folder(out) as drawn:
        draw = partial(_write_picture, folder=drawn, config=config, seed=seed)
        for item, kind in _map(draw, range(first_index, first_index + count), workers):
            counts.update(["pictures", f"background {kind}"])
            for annotation in item["annotations"]:
                counts.update(["lines", annotation["language"]])
            items.append(item)
        (out / "imgs").mkdir(exist_ok=True)
        for item in items:
            os.replace(drawn / item["img_name"], out / "imgs" / item["img_name"])
    with whole_file(out / "data.json") as file:
        file.write_text(_to_json(items), encoding="utf-8")
    return counts


@contextmanager
def _hidden_folder(out: Path) -> Iterator[Path]:
    """A folder in `out` that is gone afterwards; after an error, so is `out` if it was made here."""
    is_new = not out.exists()
    drawn = out / ".imgs.partial"
    shutil.rmtree(drawn, ignore_errors=True)  # of a process that was killed
    drawn.mkdir(parents=True)
    try:
        yield drawn
    except BaseException:  # Ctrl-C too
        shutil.rmtree(out if is_new else drawn, ignore_errors=True)
        raise
    shutil.rmtree(drawn)


def _map(function: Any, indices: Sequence[int], workers: int) -> Iterator[tuple[dict[str, Any], str]]:
    """`map` over `workers` processes; with one worker, in this process."""
    if workers == 1:
        yield from map(function, indices)
        return
    # Workers are born with SIGINT blocked: Ctrl-C reaches this process alone, which then ends them.
    resource_tracker.ensure_running()  # a process of the pool, which would unblock it again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        pool = multiprocessing.get_context("spawn").Pool(workers, initializer=cv2.setNumThreads, initargs=(1,))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with pool:
        yield from pool.imap(function, indices, chunksize=64)


def _write_picture(index: int, folder: Path, config: SyntheticConfig, seed: int) -> tuple[dict[str, Any], str]:
    """Draws and writes one picture. Returns its annotation item and its kind of background."""
    picture = draw_picture(seed, index, config)
    name = f"{index:07d}.{config.image_format}"
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if config.image_format == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    if not cv2.imwrite(str(folder / name), picture.image[..., ::-1], options):
        raise OSError(f"{folder / name}: cannot write the picture")
    annotations = [
        {
            "polygon": [[round(float(x), 1), round(float(y), 1)] for x, y in line.polygon],
            "text": line.text,
            "language": line.language,
            "color": list(line.color or ()),
            "valid": True,
        }
        for line in picture.lines
    ]
    return {"img_name": name, "caption": picture.caption, "wm_score": 0.0, "annotations": annotations}, picture.kind


def _to_json(items: list[dict[str, Any]]) -> str:
    rows = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    return f'{{"data_root": "imgs", "data_list": [\n{rows}\n]}}\n'
