"""Looks for growth over many updates: `python launch/bench/bench_soak.py [--updates N] [--every N] [key=value ...]`.

The production trainer, its loader's processes, its checkpoints and its log run with a network of a few thousand weights
on drawn pictures of 64 px, one rank on the CPU. Every so many updates a line has the median time of an update and the
resident memory of this process and of its children. Writes runs/bench/soak.json.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from omegaconf import OmegaConf

from anytext2.model.config import AnyText2Config
from anytext2.model.recognizer import RecognizerConfig
from anytext2.model.text_embedding import TextEmbeddingConfig
from anytext2.model.text_encoder import TextEncoderConfig
from anytext2.model.unet import UNetConfig
from anytext2.model.vae import VAEConfig
from anytext2.model.writenet import WriteNetConfig
from distill.config.ds_config import choose_config
from distill.config.recipes import load_recipe
from distill.runtime.watchdog import Phase
from distill.training.build import make_trainer
from distill.training.engine import init_world
from distill.training.null_objects import NullWatchdog
from launch.common.command_help import command_parser

FOLDER = Path("runs/bench")
MIB = 2**20
RECIPE = (
    "name=soak_run", "model.weights=filled",
    "data.synthetic.count=64", "data.synthetic.size=96", "data.part=all", "data.workers=1",
    "data.options.resolution=64", "data.options.max_lines=1",
    "objective.name=phased", "objective.phases=4", "lora.rank=2", "lora.alpha=2",
    "train.effective_batch=1", "train.micro_batch=1", "train.threads=1", "train.ema_decay=0.99",
    "checkpoint.save_steps=500", "checkpoint.keep=2", "checkpoint.resume=never", "log.samples=true",
)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """Some updates in a row.

    seconds: the median time of one. cpu_seconds: this process's mean CPU time of one, which other load on the machine
    affects less. mib: resident memory of this process, of its children.
    """

    updates: int
    seconds: float
    cpu_seconds: float
    mib: float
    children_mib: float


@dataclass
class Stopwatch(NullWatchdog):
    """Times updates of one micro-batch by the trainer's heartbeats. every: updates of a window."""

    every: int
    windows: list[Window] = field(default_factory=list)
    _times: list[float] = field(default_factory=list)
    _last: float = 0.0
    _cpu: float = 0.0
    _updates: int = 0

    def heartbeat(self, phase: Phase = "training") -> None:
        now = time.perf_counter()
        if phase == "training" and self._last:
            self._times.append(now - self._last)
            self._updates += 1
        else:
            self._cpu = time.process_time()
        self._last = now
        if len(self._times) == self.every:
            self._end_window()

    def _end_window(self) -> None:
        process = psutil.Process()
        children = sum(child.memory_info().rss for child in process.children(recursive=True))
        cpu = time.process_time()
        window = Window(
            updates=self._updates,
            seconds=statistics.median(self._times),
            cpu_seconds=(cpu - self._cpu) / self.every,
            mib=process.memory_info().rss / MIB,
            children_mib=children / MIB,
        )
        self._cpu = cpu
        self._times.clear()
        self.windows.append(window)
        print(_row(window), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "Look for growth of time and memory over many updates.",
        "python launch/bench/bench_soak.py --updates 2000 --every 200",
    )
    parser.add_argument("--updates", type=int, default=10_000, metavar="N", help="of the optimizer")
    parser.add_argument("--every", type=int, default=500, metavar="N", help="updates of one line")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe values")
    args = parser.parse_intermixed_args(argv)
    windows = soak(args.updates, args.every, args.overrides)
    found = {"growth": growth(windows), "windows": [asdict(window) for window in windows]}
    (FOLDER / "soak.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"last against second window: {found['growth']}\nwrote {FOLDER / 'soak.json'}")
    return 0


def soak(updates: int, every: int, overrides: Sequence[str] = ()) -> list[Window]:
    """Trains so many updates in a folder of its own, below FOLDER, which is emptied first."""
    folder = FOLDER / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.structured(network()), folder / "network.yaml")
    own = [f"run_root={folder}", f"model.config={folder / 'network.yaml'}", f"train.max_steps={updates + 1}"]
    recipe = load_recipe(None, [*RECIPE, *own, *overrides])
    world = init_world(0, recipe.train.threads)
    ds_config, _ = choose_config(Path("zero2.json"), world, fp16_on_cpu=False)
    stopwatch = Stopwatch(every)
    make_trainer(recipe, ds_config, world, watchdog=stopwatch).run()
    return stopwatch.windows


def growth(windows: Sequence[Window]) -> dict[str, float]:
    """The last window against the second: the first one also fills what is kept for a whole run."""
    first, last = windows[min(1, len(windows) - 1)], windows[-1]
    return {
        "seconds_ratio": last.seconds / first.seconds,
        "cpu_seconds_ratio": last.cpu_seconds / first.cpu_seconds,
        "mib": last.mib - first.mib,
        "children_mib": last.children_mib - first.children_mib,
    }


def network() -> AnyText2Config:
    """Every part of the model, as narrow as it goes."""
    return AnyText2Config(
        unet=UNetConfig(
            in_channels=3, out_channels=3, model_channels=8, num_res_blocks=1, channel_mult=[1, 2],
            attention_resolutions=[2], num_heads=2, context_dim=16, norm_groups=4, attnx_levels=[1],
        ),
        writenet=WriteNetConfig(glyph_widths=[2, 4, 4, 8], position_widths=[2, 2, 4, 4]),
        vae=VAEConfig(ch=4, ch_mult=[1, 1, 2, 2], num_res_blocks=1, z_channels=3, norm_groups=2),
        text_encoder=TextEncoderConfig(width=16, layers=1, heads=2, image_chunks=1),
        text_embedding=TextEmbeddingConfig(position_widths=[4, 6, 8]),
        recognizer=RecognizerConfig(scale=0.04, neck_dims=8, neck_hidden=16, heads=4, n_classes=12),
    )  # fmt: skip


def _row(window: Window) -> str:
    return (
        f"to update {window.updates:>6}: {1000 * window.seconds:7.1f} ms an update, "
        f"{1000 * window.cpu_seconds:7.1f} ms of CPU, {window.mib:7.1f} MiB here, "
        f"{window.children_mib:7.1f} MiB in children"
    )


if __name__ == "__main__":
    raise SystemExit(main())
