"""Draws pictures: `python launch/infer.py --checkpoint runs/demo --data data.json --sample-index 0 --out DIR`.

Takes a sample of a dataset (caption, texts, boxes), a checkpoint and 1, 2, 4 or 8 steps of the student's sampler;
--teacher adds the undistilled model with guided DDIM from the same noise. Without --checkpoint only the teacher is
drawn. Writes PNGs and a side-by-side grid. Exit code 0: done; 2: the command, a file or a value is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from anytext2.core.batch import collate
from distill.diffusion.samplers import SAMPLERS
from distill.diffusion.sampling import SamplingSpec, prepare_sampling, sample_batch
from distill.inference.loading import SamplingModel, data_sources, load_dataset, load_sampling_model, read_samples
from distill.inference.model import make_schedule
from distill.viz.grids import GridRow, hint_picture, picture_grid, pixels, to_uint8

STEPS = (1, 2, 4, 8)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw samples of a dataset with a few-step student and its teacher.")
    parser.add_argument(
        "--checkpoint", "--run", type=Path, metavar="DIR", help="checkpoint-N, run folder or PEFT adapter"
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="recipe; default: the one beside the checkpoint")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], metavar="JSON", help="default: the recipe's data"
    )
    parser.add_argument("--sample-index", type=int, default=0, metavar="I", help="first sample of the dataset")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="how many samples, from there on")
    parser.add_argument("--steps", type=int, action="append", choices=STEPS, help="of the student; may be repeated")
    parser.add_argument("--sampler", choices=SAMPLERS, help="of the student; default: its objective's own")
    parser.add_argument(
        "--gamma", type=float, default=0.3, help="of the trajectory sampler: the share of noise put back"
    )
    parser.add_argument("--teacher", action="store_true", help="draw the teacher beside the student")
    parser.add_argument("--teacher-steps", type=int, default=50, metavar="N")
    parser.add_argument("--guidance", type=float, help="of the teacher; 1: none; default: as distilled")
    parser.add_argument("--student-guidance", type=float, default=1.0, help="more guidance of the student; 1: none")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what guidance leads away from")
    parser.add_argument("--seed", type=int, default=0, help="of the start noise")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="samples drawn together")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/infer"), metavar="DIR")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe values, as in model.weights=FILE")
    return parser.parse_intermixed_args(argv)


def rows(args: argparse.Namespace, opened: SamplingModel) -> tuple[SamplingSpec, ...]:
    """The ways of sampling that the command asks for."""
    sampler = args.sampler or opened.student_sampler
    steps = sorted(set(args.steps or [opened.default_steps])) if opened.has_student else []
    students = [SamplingSpec("student", sampler, n, args.student_guidance, args.gamma) for n in steps]
    guidance = opened.guidance if args.guidance is None else args.guidance
    teachers = [SamplingSpec("teacher", "ddim", args.teacher_steps, guidance)] if args.teacher or not students else []
    return (*teachers, *students)


def draw(args: argparse.Namespace, opened: SamplingModel) -> None:
    """Samples, writes one PNG for each picture and the grid, and prints where they are."""
    if args.count < 1 or args.batch < 1:
        raise ValueError(f"--count {args.count} --batch {args.batch}: both must be at least 1")
    dataset, report = load_dataset(data_sources(args.data, opened), opened.recipe)
    samples, skipped = read_samples(dataset, range(args.sample_index, args.sample_index + args.count))
    print(report)
    if skipped:
        print(f"{sum(skipped.values())} of the chosen samples cannot be read: {dict(skipped)}")
    specs = rows(args, opened)
    negative = args.negative_prompt if any(spec.guidance != 1.0 for spec in specs) else None
    args.out.mkdir(parents=True, exist_ok=True)
    shown: list[GridRow] = []
    for first in range(0, len(samples), args.batch):
        batch = collate(samples[first : first + args.batch]).to(opened.device).normalized()
        scene = prepare_sampling(opened.roles, batch, args.seed, negative)
        originals = to_uint8(pixels(batch.image))
        hints = [hint_picture(position, glyph) for position, glyph in zip(batch.position, batch.glyph, strict=True)]
        here = [GridRow(*row, {}) for row in zip(batch.name, originals, hints, strict=True)]
        for painting in sample_batch(
            opened.roles, scene, specs, make_schedule(opened.roles.model.cfg), opened.consistency
        ):
            for b, image in enumerate(to_uint8(painting.image)):
                here[b].rows[painting.spec.key] = image
                Image.fromarray(image).save(args.out / f"sample{batch.index[b]:06d}-{painting.spec.key}.png")
            seconds = painting.seconds / batch.size
            print(f"{painting.spec.label}: {painting.nfe} UNet calls, {seconds:.2f} s a picture", flush=True)
        shown += here
    grid = args.out / "grid.png"
    picture_grid(shown, [(spec.key, spec.label) for spec in specs]).save(grid)
    print(f"wrote {len(samples) * len(specs)} pictures and {grid}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        steps, sampler = args.steps or (), args.sampler or ""
        opened = load_sampling_model(
            args.checkpoint, args.config, args.overrides, args.precision, args.device, steps, sampler
        )
        draw(args, opened)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
