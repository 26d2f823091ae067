"""The command lines of the commands that use a recipe. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from anytext2.core.resources import resource
from anytext2.data.options import OPTIONS
from distill.evaluation import CLIP_MODEL, ENGINES, INCEPTION_FILE, PROTOCOL
from launch.common.cli import float_list, int_list
from launch.common.command_help import command_parser
from launch.common.prompt_options import add_prompt_options

EMBEDDED_RECIPE = resource("launch/recipes/demo.yaml")
"""The recipe of every command that is given no --config."""
PRECISIONS = ("auto", "fp32", "fp16", "bf16")


def parse_train(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/train.py."""
    parser = _parser(
        "Distil AnyText2 into a few-step LoRA student, or train its teacher.",
        "data.options.",
        "deepspeed --num_gpus 3 launch/train.py --deepspeed ds_configs/zero2.json --config "
        "launch/recipes/rtx4090x3.yaml train.max_steps=2000",
    )
    parser.add_argument("--deepspeed", type=Path, required=True, metavar="JSON", help="ds_configs/zero2.json")
    _add_config(parser)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # set by the launcher
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe values, as in train.max_steps=100")
    return parser.parse_intermixed_args(argv)


def parse_infer(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/infer.py."""
    parser = _parser(
        "Sample pictures with a few-step student and its teacher.",
        "data.options.",
        "python launch/infer.py --checkpoint runs/demo --prompt 'a wooden board that reads \"OPEN\"' --seed 1 --out "
        "runs/words",
    )
    _add_model_options(parser)
    _add_sampling_options(parser)
    add = parser.add_argument
    add("--batch", type=int, default=4, metavar="N", help="pictures sampled together; default: %(default)s")
    add("--data", type=Path, action="append", default=[], metavar="JSON", help="default: the recipe's data")
    add("--sample-index", type=int, default=0, metavar="I", help="first sample of the dataset")
    add("--count", type=int, default=1, metavar="N", help="how many samples from there on, or pictures of each prompt")
    add("--steps", type=int, action="append", metavar="N", help="of the student; for samples, may be repeated")
    add("--any-steps", action="store_true", help="allow numbers of steps that the student is not for")
    add("--sampler", metavar="NAME", help="of the student; default: its objective's own")
    add("--teacher", action="store_true", help="sample the teacher beside the student")
    add("--teacher-steps", type=int, metavar="N", help="default: 50 for samples, 20 for prompts")
    add("--add", action="append", default=[], metavar="LORA:SCALE", help="a LoRA beside the student's, as a style")
    add("--add-scales", type=float_list, metavar="S,S", help="draw --prompt once for each scale of --add: scales.png")
    add("--out", type=Path, default=Path("runs/infer"), metavar="DIR", help="default: %(default)s")
    add_prompt_options(parser)
    return parser.parse_intermixed_args(argv)


def parse_demo(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/demo.py."""
    parser = _parser(
        "A page in the browser: student and teacher draw your own words side by side.",
        "data.options.",
        "python launch/demo.py --checkpoint runs/demo --port 7860",
    )
    _add_model_options(parser)
    add = parser.add_argument
    add("--use_ddim_sampler", "--use-ddim-sampler", action="store_true", help="the teacher alone, sampled with DDIM")
    add("--ocr", choices=ENGINES, help="the engine that reads the pictures; default: rapidocr where it is installed")
    add("--translate", metavar="HOW", help="prompts to English: argos, marian:FOLDER or command:PROGRAM")
    add("--port", type=int, default=7860, help="on 127.0.0.1; 0: any that is free; default: %(default)s")
    add("--out", type=Path, default=Path("runs/page"), metavar="DIR", help="all that is written; default: %(default)s")
    return parser.parse_intermixed_args(argv)


def parse_evaluate(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/evaluate.py. What is not given is None: EvaluationConfig has the defaults."""
    parser = _parser(
        "Compare a few-step student with its teacher on held-out samples.",
        "data.options.",
        "python launch/evaluate.py --run runs/demo --count 48 --student-steps 1,4",
    )
    _add_model_options(parser)
    _add_sampling_options(parser)
    add = parser.add_argument
    add("--batch", type=int, metavar="N", help="pictures sampled together; default: 8")
    add("--data", type=Path, action="append", default=[], metavar="JSON", help="held-out annotations; default: drawn")
    add("--first", type=int, default=0, metavar="I", help="first sample of the dataset, or prompt")
    add("--prompts", type=Path, metavar="JSONL", help="measure free prompts instead: one JSON object on each line")
    add("--count", type=int, metavar="N", help="samples, default 128; prompts, of each set of a benchmark, default all")
    for role, steps in (("teacher", "50,20"), ("undistilled", "4"), ("student", "1,2,4,8")):
        more = {"teacher": "; of prompts 20", "student": "; of prompts as trained"}.get(role, "")
        add(f"--{role}-steps", type=int_list, metavar="N,N", help=f"default: {steps}{more}")
    add("--student-sampler", metavar="NAME", help="default: its objective's own")
    add("--grid-rows", dest="shown", type=int, metavar="N", help="pictures in grid.png; default: 8")
    add("--shown", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # the option's old name
    add(
        "--ocr",
        choices=ENGINES,
        action="append",
        help=f"the engine that reads, for prompts also several; default: {ENGINES[0]}",
    )
    add("--no-ocr", action="store_true", help="leave the reading of lines out")
    add("--ocr-threads", type=int, metavar="N", help="default: 1")
    add("--clip-weights", type=Path, metavar="FILE", help="measure the CLIP score with these weights")
    add("--clip-model", default=CLIP_MODEL, metavar="NAME", help="as open_clip calls it; %(default)s")
    add("--fid-reference", type=Path, metavar="DIR", help="measure FID and KID to these pictures")
    add("--fid-weights", type=Path, metavar="FILE", help=INCEPTION_FILE)
    add("--protocol", choices=("held-out", PROTOCOL), default="held-out", help="what is sampled and how")
    add("--benchmark", type=Path, metavar="DIR", help=f"where {PROTOCOL} is unpacked")
    add("--reference", type=Path, metavar="FILE", help="take the first teacher row from it; made where it is not there")
    add("--out", type=Path, metavar="DIR", help="default: the run folder, else runs/evaluate")
    return parser.parse_intermixed_args(argv)


def parse_check_dataset(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/check_dataset.py."""
    parser = _data_parser(
        "Check annotation files, their pictures and what is made of them.",
        "python launch/check_dataset.py runs/drawn/data.json --limit 1000 resolution=256",
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help="default: runs/check/<name of the first file>.json")
    add("--workers", type=int, default=2, metavar="N", help="processes; the result is the same")
    add("--limit", type=int, metavar="N", help="check only N pictures of each file, spread over it")
    add("--max-unreadable", type=float, metavar="SHARE", help="of the pictures; default: data.max_unreadable, 0.05")
    add("--max-findings", type=float, default=0.0, metavar="SHARE", help="of the samples that may fail the audit")
    return parser.parse_intermixed_args(argv)


def parse_show_dataset(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/show_dataset.py."""
    parser = _data_parser(
        "Show samples of a dataset as the model gets them.",
        "python launch/show_dataset.py runs/drawn/data.json --out runs/sheet --count 48",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for index.html and its pictures")
    add("--count", type=int, default=24, metavar="N", help="samples; fewer where the data has fewer")
    add("--resolution", type=int, metavar="PIXELS", help="the same as resolution=PIXELS")
    return parser.parse_intermixed_args(argv)


def parse_build_cache(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/build_lmdb_cache.py."""
    parser = _data_parser(
        "Build a feature cache for training.",
        "python launch/build_lmdb_cache.py runs/drawn/data.json --out runs/drawn/features.lmdb --latents",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="the store (with buckets one for each size)")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that draw")
    add("--map-size", type=float, metavar="GIB", help="most it may take; default: what is free")
    add("--shard", metavar="K/N", help="only part K of N, as features-KofN.lmdb: each machine builds another part")
    add("--latents", action="store_true", help="also the latents of the recipe's model")
    add("--captions", action="store_true", help="also the contexts of image captions, of that model")
    add("--device", default="auto", help="for latents and captions: auto, cpu, cuda, cuda:1, ...")
    return parser.parse_intermixed_args(argv)


def options_table(prefix: str) -> str:
    """The options of samples with default, range and effect. prefix: before their names on this command line."""
    recipe = yaml.safe_load(EMBEDDED_RECIPE.read_text(encoding="utf-8"))["data"]["options"]
    rows = [("option", "default", EMBEDDED_RECIPE.name, "range; effect")]
    for name, documented in OPTIONS.items():
        effect = "; ".join(part for part in (documented.range, documented.help) if part)
        rows.append((name, _plain(documented.default), _plain(recipe[name]) if name in recipe else "", effect))
    table = [f"  {name:<18} {default:<10} {here:<10} {effect}" for name, default, here, effect in rows]
    return "\n".join([f"data.options, as in {prefix}resolution=256:", *table])


def _plain(value: object) -> str:
    """The value as it is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def _parser(what: str, prefix: str, example: str) -> argparse.ArgumentParser:
    return command_parser(what, example, options_table(prefix))


def _add_config(parser: argparse.ArgumentParser, default: str = f"the embedded {EMBEDDED_RECIPE.name}") -> None:
    parser.add_argument("--config", type=Path, metavar="YAML", help=f"recipe; default: {default}")


def _data_parser(what: str, example: str) -> argparse.ArgumentParser:
    """A parser with `items` (files and options) and the recipe: what `resolve_data` takes."""
    parser = _parser(what, "", example)
    parser.add_argument(
        "items",
        nargs="*",
        metavar="JSON | key=value",
        help="annotation files (default: the recipe's), and values of data.options or of any recipe key, as in "
        "max_lines=3 or data.max_faulty=0.1",
    )
    _add_config(parser)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)  # the option's old name
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model is sampled, and where: `load_sampling_model` takes them."""
    parser.add_argument(
        "--checkpoint",
        "--run",
        type=Path,
        metavar="PATH",
        help="checkpoint-N, run folder, PEFT adapter, or a file of launch/export.py",
    )
    _add_config(parser, f"the one beside the checkpoint, else the embedded {EMBEDDED_RECIPE.name}")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the student's weights: faster")
    parser.add_argument("--graphs", action="store_true", help="run the networks as CUDA graphs: for many pictures")
    parser.add_argument("--quantized", type=Path, metavar="FILE", help="8-bit weights, of launch/quantize.py")
    parser.add_argument("--quantize-activations", action="store_true", help="with --quantized: needs torchao")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help="auto: fp16 on a GPU, else fp32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe values, as in model.weights=FILE")


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Guidance and noise of sampling. Options of guidance are None where the command does not name them."""
    add = parser.add_argument
    add("--guidance", type=float, help="of the teacher; 1: none; default: as distilled")
    add("--student-guidance", type=float, metavar="G", help="more guidance of the student; default 1: none")
    add("--negative-prompt", default="", metavar="TEXT", help="what guidance leads away from")
    add("--gamma", type=float, default=0.3, help="of the trajectory sampler: the share of noise put back")
    add("--seed", type=int, default=0, help="of the noise")
