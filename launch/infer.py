"""Draws pictures: `python launch/infer.py --checkpoint runs/demo --prompt 'a sign that reads "OPEN"' --out DIR`.

Draws a prompt, the prompts of a file, or samples of a dataset (caption, texts, boxes), with a checkpoint and numbers of
steps of the student's sampler; --teacher adds the undistilled model with guided DDIM from the same noise. Without
--checkpoint only the teacher is sampled. Writes PNGs, and of samples a side-by-side grid. Exit code 0: done; 2: the
command, a file or a value is wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launch.common.cli import is_command, require_at_least, require_output_folder, run_command
from launch.common.parsers import parse_infer as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from PIL import Image

from anytext2.core.batch import Sample, collate
from anytext2.core.files import whole_file
from distill.diffusion.sampling import SamplingPreparation, SamplingSpec
from distill.inference.loading import SamplingModel, data_sources, load_dataset, load_sampling_model, read_samples
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.variants.added import add_adapters
from distill.viz.grids import SampleImages, hint_to_image, sample_grid, to_uint8, to_unit_range
from launch.common.added_drawing import draw_scales, requested_adapters
from launch.common.data_options import recipe_line
from launch.common.model_variants import with_variants
from launch.common.prompt_drawing import draw_prompts


def sampling_specs(args: argparse.Namespace, model: SamplingModel) -> tuple[SamplingSpec, ...]:
    """The ways of sampling that the command asks for."""
    sampler = args.sampler or model.student_sampler
    steps = sorted(set(args.steps or [model.default_steps])) if model.has_student else []
    student_guidance = 1.0 if args.student_guidance is None else args.student_guidance
    students = [SamplingSpec("student", sampler, n, student_guidance, args.gamma) for n in steps]
    guidance = model.guidance if args.guidance is None else args.guidance
    teachers = (
        [SamplingSpec("teacher", "ddim", args.teacher_steps or 50, guidance)] if args.teacher or not students else []
    )
    return (*teachers, *students)


def infer(args: argparse.Namespace) -> int:
    """Loads the model and draws what is asked for. Returns the exit code."""
    require_at_least(args, 1, "count", "batch", "steps", "teacher-steps")
    require_output_folder(args.out, "--out")
    steps, sampler = () if args.any_steps else args.steps or (), args.sampler or ""
    added, scales = requested_adapters(args)
    model = load_sampling_model(
        args.checkpoint,
        args.config,
        args.overrides,
        args.precision,
        args.device,
        steps,
        sampler,
        args.merge and not added,
        args.teacher,
    )
    if added:
        model = add_adapters(model, added, args.merge, args.teacher)
        print(*(model.added.report() if model.added else ()), sep="\n", flush=True)
    model = with_variants(args, model)
    print(recipe_line(model.recipe, model.recipe_file), flush=True)
    if scales:
        draw_scales(args, model, scales)
        return 0
    if args.prompt is not None or args.prompts is not None:
        return draw_prompts(args, model)
    draw_samples(args, model)
    return 0


def draw_samples(args: argparse.Namespace, model: SamplingModel) -> None:
    """Samples a dataset, writes one PNG for each picture and the grid, and prints where they are."""
    dataset, report = load_dataset(data_sources(args.data, model), model.recipe)
    samples, skipped = read_samples(dataset, range(args.sample_index, args.sample_index + args.count))
    print(report)
    if skipped:
        print(f"{sum(skipped.values())} of the chosen samples cannot be read: {dict(skipped)}")
    specs = sampling_specs(args, model)
    args.out.mkdir(parents=True, exist_ok=True)
    examples: list[SampleImages] = []
    pipeline = AnyText2Pipeline(model)
    prepare = pipeline.preparation(specs, args.seed, args.negative_prompt)
    for first in range(0, len(samples), args.batch):
        examples += sample_images(args, pipeline, prepare, samples[first : first + args.batch], specs)
    grid = args.out / "grid.png"
    with whole_file(grid) as file:
        sample_grid(examples, [(spec.key, spec.label) for spec in specs]).save(file)
    print(f"wrote {len(samples) * len(specs)} pictures and {grid}")


def sample_images(
    args: argparse.Namespace,
    pipeline: AnyText2Pipeline,
    prepare: SamplingPreparation,
    samples: Sequence[Sample],
    specs: Sequence[SamplingSpec],
) -> list[SampleImages]:
    """Samples a batch in every way of `specs` and writes the PNGs."""
    batch = collate(samples)
    originals = to_uint8(to_unit_range(batch.normalized().image))
    hints = [hint_to_image(sample.position, sample.glyph) for sample in samples]
    examples = [SampleImages(*row, {}) for row in zip(batch.name, originals, hints, strict=True)]
    for sampled in pipeline.sample_batch(batch, specs, prepare):
        for b, image in enumerate(to_uint8(sampled.image)):
            examples[b].sampled[sampled.spec.key] = image
            with whole_file(args.out / f"sample{batch.index[b]:06d}-{sampled.spec.key}.png") as file:
                Image.fromarray(image).save(file)
        seconds = sampled.seconds / batch.size
        print(f"{sampled.spec.label}: {sampled.nfe} UNet calls, {seconds:.2f} s a picture", flush=True)
    return examples


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: infer(args))


if __name__ == "__main__":
    raise SystemExit(main())
