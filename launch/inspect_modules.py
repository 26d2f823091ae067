"""Shows the layers of a model, and what a LoRA adapts: `python launch/inspect_modules.py [--model sd15]`.

Prints every Linear and Conv2d by family with counts and shapes, and what each preset of lora.targets trains, and writes
a list of layers that `lora.targets=FILE` takes. `--names` and `--adapter` say which layers of somebody else's list or
adapter the model has, `--weights` how a checkpoint's keys differ. Only `--adapter` and `--weights` read weights.
Exit code 0: done; 2: a file or a value is wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.common.cli import is_command, require_at_least, require_output_file, run_command
from launch.common.planning_parsers import parse_inspect as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from anytext2.core.files import whole_file
from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from anytext2.model.weights import IGNORED_KEY, official_state_dict, tensor_shapes
from distill.adapters.module_table import (
    Adapted,
    Layer,
    adapted_by,
    adapted_by_presets,
    by_family,
    find_layers,
    listed_names,
    shapes,
    sort_names,
)
from distill.adapters.targets import TARGET_PRESETS
from distill.adapters.warm_start import PICKLED_WEIGHTS
from distill.checkpoint.formats import ADAPTER_WEIGHTS, portable_name

SHOWN = 5
"""Names of a kind that are printed."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Prints the tables and writes the list. Raises ValueError in one line; nothing is written then."""
    require_at_least(args, 1, "rank")
    require_output_file(args.out, "--out")
    if args.names is not None and args.names.resolve() == args.out.resolve():
        raise ValueError(f"--out {args.out}: is --names itself; name another file")
    model = build_model(load_model_config(args.model), "meta")
    layers = find_layers(model)
    for line in table(layers):
        print(line)
    total = sum(p.numel() for p in model.parameters())
    presets = adapted_by_presets(model, layers)
    chosen = [] if args.targets in TARGET_PRESETS else [adapted_by(model, layers, args.targets)]
    for line in trained_table([*presets, *chosen], args.rank, total):
        print(line)
    if args.weights is not None:
        print("\n".join(key_differences(model, args.weights)))
    paths, origin = _chosen(args, model, layers)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.out) as hidden:
        head = f"# {len(paths)} layers of {args.model}: {origin}"
        hidden.write_text("\n".join([head, *paths]) + "\n", encoding="utf-8")
    print(f"wrote {args.out}: {len(paths)} layers, {origin}; train them with lora.targets={args.out}")


def table(layers: Sequence[Layer]) -> list[str]:
    """The layers by family, as a Markdown table."""
    rows = ["| network | family | kind | layers | shapes of the weights | parameters |", "|---|---|---|---|---|---|"]
    for (network, family, kind), group in by_family(layers).items():
        count = sum(layer.parameters for layer in group)
        rows.append(f"| {network} | {family} | {kind} | {len(group)} | {shapes(group)} | {count:,} |")
    return [*rows, ""]


def trained_table(choices: Sequence[Adapted], rank: int, total: int) -> list[str]:
    """What each choice of targets trains at this rank. total: parameters of the model."""
    rows = [f"| lora.targets | layers | trained parameters, rank {rank} | share of {total:,} |", "|---|---|---|---|"]
    for choice in choices:
        trained = choice.trained_per_rank * rank
        rows.append(f"| {choice.name} | {len(choice.paths)} | {trained:,} | {trained / total:.2%} |")
    return [*rows, ""]


def key_differences(model: AnyText2, path: Path) -> list[str]:
    """How the tensors of a checkpoint differ from the model's, by official name and shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in official_state_dict(model).items()}
    found = tensor_shapes(path)
    found.pop(IGNORED_KEY, None)
    missing, unexpected = [n for n in wanted if n not in found], [n for n in found if n not in wanted]
    reshaped = [n for n, shape in wanted.items() if found.get(n, shape) != shape]
    lines = [f"{path}: {len(found)} tensors, the model has {len(wanted)}"]
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)):
        lines.append(f"  {len(names)} {what}{_first(names)}")
    return [*lines, ""]


def _chosen(args: argparse.Namespace, model: AnyText2, layers: Sequence[Layer]) -> tuple[list[str], str]:
    """The layers of the list to write, and where they come from. Raises ValueError where there are none."""
    if args.names is not None and args.adapter is not None:
        raise ValueError("--names and --adapter: give one of them, because one list is written")
    if args.names is None and args.adapter is None:
        return list(adapted_by(model, layers, args.targets).paths), f"lora.targets={args.targets}"
    source = args.names if args.adapter is None else args.adapter
    given = listed_names(_text(source)) if args.adapter is None else _adapted_layers(source)
    names = sort_names(model, layers, given)
    print(f"{source}: {len(set(given))} names")
    print(f"  {len(names.present)} are layers of the model that may carry an adapter")
    print(f"  {len(names.elsewhere)} exist, but learn nothing or take no adapter{_first(names.elsewhere)}")
    print(f"  {len(names.absent)} have no place in the model{_first(names.absent)}")
    if not names.present:
        raise ValueError(f"{source}: names no layer of the model that may carry an adapter")
    return list(names.present), f"those of {source.name}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--names {path}: not UTF-8 text") from error


def _adapted_layers(path: Path) -> list[str]:
    """The layers that an adapter's tensors belong to."""
    inside = [path / name for name in (ADAPTER_WEIGHTS, PICKLED_WEIGHTS) if (path / name).is_file()]
    if path.is_dir() and not inside:
        raise ValueError(f"--adapter {path}: no {ADAPTER_WEIGHTS} or {PICKLED_WEIGHTS} there, as checkpoint-N has")
    file = inside[0] if inside else path
    names = [portable_name(name, "default") for name in tensor_shapes(file)]
    layers = [name.split(".lora_")[0] for name in names if ".lora_" in name]
    if not layers:
        raise ValueError(f"--adapter {file}: no tensor of a LoRA in PEFT's layout (names with .lora_A. or .lora_B.)")
    return layers


def _first(names: Sequence[str]) -> str:
    listed = "".join(f"\n    {name}" for name in names[:SHOWN])
    return listed + (f"\n    ... and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


if __name__ == "__main__":
    raise SystemExit(main())
