"""Measures time and memory of reading a large annotation file; see `bench_data.py --annotations`.

Generates a file in the AnyWord-3M format and loads it in a process of its own, to measure the memory of loading only.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from anytext2.data.annotations import load_records

ANYWORD_3M_ITEMS = 3_000_000

_MIB = 2**20
_WORDS = ("a photo", "of a shop", "with red letters", "on a wall", "in the street", "at night", "and a sign", "of wood")
_TEXTS = (("Latin", "OPEN 24 HOURS"), ("Latin", "Bakery"), ("Chinese", "招财进宝"), ("Chinese", "药房"))


@dataclass(frozen=True)
class LoadCost:
    """The cost of loading one file.

    cpu_seconds: CPU time. resident_before_mib, resident_mib, peak_mib: memory of the process in MiB before and after
    loading, and at its peak. bytes_per_record: size of a packed record.
    """

    items: int
    lines: int
    file_mib: float
    cpu_seconds: float
    resident_before_mib: float
    resident_mib: float
    peak_mib: float
    bytes_per_record: float

    def extrapolated(self, items: int = ANYWORD_3M_ITEMS) -> dict[str, float]:
        """Time and peak memory for another number of items, assuming that both grow linearly."""
        factor = items / self.items
        return {
            "items": items,
            "cpu_seconds": round(factor * self.cpu_seconds, 1),
            "peak_gib": round(
                (self.resident_before_mib + factor * (self.peak_mib - self.resident_before_mib)) / 1024, 2
            ),
        }


def measure(path: Path, items: int) -> dict[str, Any]:
    """Generates the file `path` with `items` items, loads and removes it. Returns the cost and its extrapolation."""
    write_annotations(path, items)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            cost = process.submit(measure_load, path).result()
    finally:
        path.unlink()
    return {**asdict(cost), "extrapolated": cost.extrapolated()}


def write_annotations(path: Path, items: int) -> None:
    """Writes an annotation file of random items, with one to five lines and captions of about twelve words each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"data_root": "imgs", "data_list": [\n')
        for number in range(items):
            end = ",\n" if number + 1 < items else "\n"
            file.write(json.dumps(_item(number, rng), ensure_ascii=False) + end)
        file.write("]}\n")


def _item(number: int, rng: np.random.Generator) -> dict[str, Any]:
    words = rng.integers(0, len(_WORDS), int(rng.integers(3, 8)))
    lines = []
    for line in range(int(rng.integers(1, 6))):
        language, text = _TEXTS[int(rng.integers(len(_TEXTS)))]
        left, top = (round(float(x), 1) for x in rng.uniform(0, 300, 2))
        corners = [[left, top], [left + 150.5, top], [left + 150.5, top + 40], [left, top + 40]]
        color = rng.integers(0, 256, 3).tolist()
        lines.append(
            {"polygon": corners, "text": text, "language": language, "valid": True, "color": color, "pos": line}
        )
    caption = " ".join(_WORDS[word] for word in words)
    return {
        "img_name": f"{number % 1000:03}/{number:09}.jpg",
        "caption": caption,
        "wm_score": 0.1,
        "annotations": lines,
    }


def measure_load(path: Path) -> LoadCost:
    """Loads the file and measures this process."""
    before, began = _memory("VmRSS"), time.process_time()
    records, report = load_records(path)
    seconds = time.process_time() - began
    return LoadCost(
        items=len(records),
        lines=report.lines,
        file_mib=round(path.stat().st_size / _MIB, 1),
        cpu_seconds=round(seconds, 2),
        resident_before_mib=before,
        resident_mib=_memory("VmRSS"),
        peak_mib=_memory("VmHWM"),
        bytes_per_record=round(records.nbytes / len(records), 1),
    )


def _memory(name: str) -> float:
    """Memory of this process in MiB. name: VmRSS (resident) or VmHWM (peak), a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise AssertionError(f"/proc/self/status has no {name}")


def format_cost(cost: dict[str, Any]) -> str:
    """The figures in two lines."""
    full = cost["extrapolated"]
    return (
        f"{cost['items']} items, {cost['lines']} lines, {cost['file_mib']} MiB: {cost['cpu_seconds']} s of CPU, "
        f"{cost['resident_mib']} MiB resident ({cost['resident_before_mib']} before, {cost['peak_mib']} at most), "
        f"{cost['bytes_per_record']} bytes a record\n"
        f"{full['items']} items would take {full['cpu_seconds']} s and {full['peak_gib']} GiB"
    )
