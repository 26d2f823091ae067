"""Makes a recipe of what started an earlier script: `python launch/migrate.py OLD.yaml`, or its whole command line.

    python launch/migrate.py train_config.yaml
    python launch/migrate.py --out mine.yaml accelerate launch student_model/train_lcm_anytext.py --train_batch_size 12

Prints what changed its meaning, what has no counterpart, and which values harmed students. docs/MIGRATION.md lists all
keys. Exit code 0: the recipe is written and valid; 2: it cannot be, one line says why.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from launch.common.cli import is_command, require_output_file, run_command
from launch.common.planning_parsers import parse_migrate as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

import yaml

from anytext2.core.files import whole_file
from distill.config.recipes import load_recipe
from distill.config.schema import Recipe
from distill.migration.convert import Migrated, migrate
from distill.migration.old_files import OldSettings, read_old
from distill.migration.table import table

FOLDER = Path("runs/recipes")
ORDER = tuple(field.name for field in fields(Recipe))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Writes the recipe and says what to know. Raises ValueError in one line; nothing is written then."""
    if args.table:
        print(table())
        return
    if not args.old:
        raise ValueError("name an old YAML file, or give the old command line, as in launch/migrate.py OLD.yaml")
    old = read_old(args.old)
    stem = Path(args.old[0]).stem if len(args.old) == 1 and Path(args.old[0]).is_file() else f"migrated_{old.script}"
    out = args.out or FOLDER / f"{stem}.yaml"
    require_output_file(out, "--out")
    if out.exists():
        raise ValueError(f"--out {out}: exists already; name another file")
    made = migrate(old, out.stem)
    write(out, old, made)
    for line in report(old, made):
        print(line)
    print(f"wrote {out}")
    print(f"next: {_training(out, made)}")


def write(out: Path, old: OldSettings, made: Migrated) -> None:
    """Writes the recipe, whole or not at all. Raises ValueError where it would be refused by the trainer."""
    head = f"# Made by launch/migrate.py of settings of the earlier script {old.script}, for {old.gpus} GPU(s)."
    ordered = {name: made.recipe[name] for name in ORDER if name in made.recipe}
    text = "\n".join([head, yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=110)])
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as hidden:
        hidden.write_text(text, encoding="utf-8")
        try:
            load_recipe(hidden)
        except ValueError as error:
            raise ValueError(
                f"the old values make no recipe: {str(error).replace(f'--config {hidden}: ', '')}"
            ) from error


def report(old: OldSettings, made: Migrated) -> list[str]:
    """What to know about the recipe, a line for each thing."""
    objective = made.recipe["objective"]["name"]
    lines = [f"script: {old.script}, {old.gpus} GPU{'s' if old.gpus > 1 else ''}; objective {objective}"]
    lines += [f"changed: {line}" for line in made.changed]
    lines += [f"without counterpart: {line}" for line in made.dropped]
    lines += [
        f"unknown: {name}: no script had it" + (f"; nearest is {nearest}" if nearest else "")
        for name, nearest in old.unknown.items()
    ]
    return lines + [f"warning: {line}" for line in made.warnings]


def _training(out: Path, made: Migrated) -> str:
    config = f"--deepspeed ds_configs/{made.ds_config} --config {shlex.quote(str(out))}"
    return f"deepspeed --num_gpus {made.gpus} launch/train.py {config}"


if __name__ == "__main__":
    raise SystemExit(main())
