"""What a worker process keeps does not grow with the epochs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import psutil
import pytest

from anytext2.cache.build import build_cache
from anytext2.cache.header import header_for
from anytext2.cache.store import FeatureCache
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import load_font_table
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.data.batch_sampler import ShuffledBatchSampler
from distill.data.loader import BatchSizes, load_batches, micro_batches
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.process

PICTURES, EPOCHS = 24, 20


def anonymous_bytes(pid: int) -> int:
    """The heap of a process: neither pages of mapped files, which come and go with the page cache, nor shared memory.

    Pages inherited from the parent count from the start, so that copying them on write is no growth.
    """
    (line,) = (x for x in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if x.startswith("Anonymous:"))
    return int(line.split()[1]) * 1024


def memory_by_epoch(folder: Path) -> list[int]:
    """The worker's heap at the end of each epoch, reading from a feature cache."""
    write_dataset(folder, PICTURES, SyntheticConfig(size=160), seed=1)
    records, fonts = load_records(folder / "data.json")[0], load_font_table()
    config = DatasetConfig(resolution=128)
    header = header_for(config, fonts, [folder / "data.json"])
    build_cache(folder / "features.lmdb", AnyWordDataset(records, config, 0, fonts), header, workers=0)
    dataset = AnyWordDataset(records, config, 0, fonts, FeatureCache.open(folder / "features.lmdb", header))
    batches = micro_batches(ShuffledBatchSampler(PICTURES, 0), BatchSizes(4, 4, 1), 0, 0)
    found: list[int] = []
    for number, _loaded in enumerate(load_batches(dataset, batches, workers=1, pin=False), start=1):
        if number % (PICTURES // 4) == 0:
            (worker,) = psutil.Process().children()
            found.append(anonymous_bytes(worker.pid))
        if len(found) == EPOCHS:
            break
    return found


def test_a_worker_s_memory_stays_over_twenty_epochs(tmp_path: Path) -> None:
    # in a process of its own: the test process has opened fonts and stores that the worker would inherit
    command = [sys.executable, "-m", "tests.distill.data.test_loader_memory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True, cwd=ROOT)
    heap = json.loads(done.stdout.splitlines()[-1])
    assert len(heap) == EPOCHS
    # The first epochs fill the caches of fonts and the allocator's arenas; a batch in the making is 3.5 MB.
    early, late = median(heap[7:12]), median(heap[-5:])
    assert late - early < 5 << 20, heap


if __name__ == "__main__":
    print(json.dumps(memory_by_epoch(Path(sys.argv[1]))))
