"""Measures one micro-step: `make bench`, or without the public recipe `python launch/bench/bench.py`.

At each size, the tiny model and the official one (constants as weights, 256 px), it measures the production recipe's
objective, `consistency`, and the steps of `peers`, which take turns in one process; the FLOPs of each part of the
model; and the production step with each saving of savings.py switched off in turn. A step is input, forward and
backward pass, without DeepSpeed and optimizer. Writes runs/bench/step.json. Minutes on two idle cores, 7 GB of memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anytext2.core.batch import Conditions
from anytext2.model.anytext2 import AnyText2
from distill.adapters.roles import predict_noise
from distill.config.recipes import find_recipe, load_recipe
from distill.config.schema import Recipe
from launch.bench.measure import count_flops, describe, median_seconds
from launch.bench.savings import SAVINGS, pictures_encoded
from launch.bench.workload import MicroStep, Workload, make_workload
from launch.common.command_help import command_parser

PRODUCTION = Path("rtx4090x3.yaml")
FOLDER = Path("runs/bench")

# The objective of the public recipe: one solver step of the teacher, and the student's own target.
_CONSISTENCY = ("objective.name=consistency", "objective.teacher_steps=1")
_GIGA, _MIB = 1e9, 2**20

Peers = Mapping[str, Callable[[Workload], MicroStep]]
"""Name -> maker of a step on the same micro-batch, from the same frozen weights."""


@dataclass(frozen=True)
class Size:
    """A model and a micro-batch. constant: see `make_workload`. overrides: of the recipe."""

    batch: int
    pixels: int
    dtype: str
    constant: bool
    overrides: tuple[str, ...] = ()

    def recipe(self, *overrides: str) -> Recipe:
        """The production recipe at this size."""
        usual = (f"data.options.resolution={self.pixels}", "model.activation_checkpointing=false")
        return load_recipe(find_recipe(PRODUCTION), [*usual, *self.overrides, *overrides])


SIZES = {
    "tiny": Size(4, 128, "float32", False, ("model.config=tiny", "model.weights=embedded")),
    "sd15": Size(1, 256, "bfloat16", True),
}


def main(argv: Sequence[str] | None = None, peers: Peers | None = None) -> int:
    parser = command_parser(
        "Measure one micro-step, and what each saving saves.", "python launch/bench/bench.py --sizes tiny --repeats 5"
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="sizes of the model")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed steps, of which the median is taken")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="for step.json")
    args = parser.parse_args(argv)
    torch.set_flush_denormal(True)  # constants as weights make tiny activations, which slow a CPU down
    device = torch.device("cpu")
    results: dict[str, Any] = {"environment": describe(device), "sizes": {}}
    for name in args.sizes:
        size = SIZES[name]
        print(f"{name}, {size.batch} x {size.pixels} px in {size.dtype}", flush=True)
        results["sizes"][name] = measure_size(size, peers or {}, args.out, device, args.repeats)
        write_results(args.out, results)
    print(f"wrote {args.out / 'step.json'}")
    return 0


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """step.json: environment; sizes by name, each with its settings, steps, parts and savings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure_size(size: Size, peers: Peers, folder: Path, device: torch.device, repeats: int) -> dict[str, Any]:
    """Everything about one size; prints each table when it is there.

    `steps` and `savings` hold `MicroStep.profile` and seconds by name.
    """
    recipe = size.recipe()
    workload = make_workload(recipe, size.batch, getattr(torch, size.dtype), folder, device, size.constant)
    ours = workload.micro_step()
    consistency = workload.micro_step(size.recipe(*_CONSISTENCY))
    steps = {
        recipe.objective["name"]: ours,
        "consistency": consistency,
        "consistency, online": replace(consistency, context=pictures_encoded),
        **{name: make(workload) for name, make in peers.items()},
    }
    compared = _measure_steps(steps, repeats, warmups=1)
    print(format_rows("micro-step", compared), flush=True)
    del steps  # and with them the networks of the peers
    parts = flops_by_part(workload)
    print("\nGFLOP of a sample: " + ", ".join(f"{k} {v / _GIGA:.1f}" for k, v in parts.items()), flush=True)
    without = {name: replace(ours, context=off) for name, off in SAVINGS.items()}
    savings = _measure_steps({"(nothing)": ours, **without}, repeats, warmups=0)
    print(format_rows("without", savings) + "\n", flush=True)
    return {"settings": asdict(size), "steps": compared, "parts": parts, "savings": savings}


def _measure_steps(steps: Mapping[str, MicroStep], repeats: int, warmups: int) -> dict[str, dict[str, Any]]:
    device = next(iter(steps.values())).device
    seconds = median_seconds(steps, device, repeats, warmups)
    return {
        name: {**step.profile(), "seconds": seconds[name], "samples_per_second": step.samples / seconds[name]}
        for name, step in steps.items()
    }


def flops_by_part(workload: Workload) -> dict[str, int]:
    """FLOPs of the parts of a micro-step, for one sample."""
    batch, samples = workload.loaded.batch.to(workload.device).normalized(), workload.samples
    with workload.roles.teacher() as model:
        latent = model.encode(batch.image)
        given = model.encode_conditions(batch, latent)
        control = model.control_maps(given)
        t = torch.full((samples,), 500, device=workload.device)
        calls: dict[str, Callable[[], object]] = {
            "UNet call": lambda: predict_noise(model, latent, t, given, control),
            "WriteNet call": lambda: model.control_maps(given),
            "VAE encoding": lambda: model.encode(batch.image),
            "conditions": lambda: model.encode_conditions(batch, latent),
        }
        parts = {name: count_flops(call) for name, call in calls.items()}
    latent, given = latent.clone(), given.map(torch.clone)
    parts["student"] = count_flops(lambda: _train_student(workload.roles.model, latent, t, given))
    return {name: flops // samples for name, flops in parts.items()}


def _train_student(model: AnyText2, latent: torch.Tensor, t: torch.Tensor, given: Conditions) -> None:
    predict_noise(model, latent, t, given, model.control_maps(given)).square().mean().backward()


def format_rows(title: str, rows: Mapping[str, dict[str, Any]]) -> str:
    """One line a row of `measure_size`."""
    head = ("operations", "input", "modules", "reads", "GFLOP", "step MiB", "weights MiB", "samples/s")
    lines = ["", f"{title:<30}" + "".join(f"{name:>12}" for name in head)]
    for name, row in rows.items():
        counts = [f"{row[key]:>12}" for key in ("together", "inputs", "module_calls", "reads")]
        memory = [f"{row[key] / _MIB:>12.0f}" for key in ("growth_bytes", "weight_bytes")]
        flops, rate = f"{row['flops'] / _GIGA:>12.1f}", f"{row['samples_per_second']:>12.3f}"
        lines.append("".join([f"{name:<30}", *counts, flops, *memory, rate]))
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
