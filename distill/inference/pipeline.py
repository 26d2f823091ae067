"""A model that draws prompts: `AnyText2Pipeline.from_run("runs/demo")('a sign that reads "OPEN"').images[0]`.

The names are those of diffusers' pipelines where there is the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from anytext2.core.batch import Batch
from anytext2.glyphs.fonts import FontTable, load_font_table
from anytext2.glyphs.render import REFERENCE_RESOLUTION
from anytext2.synthetic.options import SyntheticConfig
from distill.config.schema import Recipe
from distill.diffusion.sampling import OnStep, SampledBatch, SamplingPreparation, SamplingSpec, sample_batch
from distill.inference.loading import PRECISIONS, SamplingModel, load_sampling_model, move_model, resolve_device
from distill.inference.model import make_schedule
from distill.inference.preparation import DrawingLimits, PreparedDrawing, RequestPreparation
from distill.inference.request import DrawingRequest, requests_of
from distill.inference.result import DrawingResult, DrawingResults, DrawnRow
from distill.inference.variants.added import add_adapters, with_scales
from distill.viz.grids import to_uint8

PIXELS_AT_ONCE = 4 * 512 * 512
"""At most this many pixels are sampled together, at least one picture."""

StepCallback = Callable[["AnyText2Pipeline", int, int, dict[str, Any]], Any]
"""As `callback_on_step_end` of diffusers: (pipeline, step, timestep, {"latents": ..., "spec": ...}).

It may stop the drawing by an exception. What it returns is not used.
"""


class AnyText2Pipeline:
    """Draws texts in pictures with a distilled student, its teacher, or both."""

    def __init__(
        self,
        model: SamplingModel,
        fonts: FontTable | None = None,
        translate: Callable[[str], str] | None = None,
        limits: DrawingLimits | None = None,
    ) -> None:
        """
        Args:
            fonts: the fonts that words are drawn in for the model; default: those of this repository.
            translate: a prompt in another language -> English.
            limits: what the model can draw; default: `drawing_limits` of its recipe.
        """
        self.model = model
        cfg = model.roles.model.cfg
        limits = limits or drawing_limits(model.recipe)
        cells = cfg.vae.downsampling * cfg.unet.downsampling
        self.prepare = RequestPreparation(model.recipe, fonts or load_font_table(), cells, limits, translate)
        self._schedule = make_schedule(cfg)
        self._shared: dict[str | None, SamplingPreparation] = {}

    @classmethod
    def from_run(
        cls,
        path: str | Path | None,
        *,
        config: str | Path | None = None,
        overrides: Sequence[str] = (),
        device: str = "auto",
        precision: str = "auto",
        merge: bool = False,
        keep_teacher: bool = True,
        add: Sequence[tuple[str | Path, float]] = (),
        **options: Any,
    ) -> AnyText2Pipeline:
        """The pipeline of a run folder, a checkpoint, or a folder with a PEFT adapter; None: the undistilled model.

        config, overrides: recipe, for an adapter alone or other base weights (`model.weights=FILE`). merge,
        keep_teacher: see `load_sampling_model`. add: LoRAs beside the student's, with their scales.
        options: of the pipeline. Raises ValueError in one line.
        """
        folder, recipe = (None if name is None else Path(name) for name in (path, config))
        model = load_sampling_model(
            folder, recipe, overrides, precision, device, merge=merge and not add, keep_teacher=keep_teacher
        )
        if add:
            model = add_adapters(model, [(Path(file), scale) for file, scale in add], merge, keep_teacher)
        return cls(model, **options)

    def set_scales(self, *scales: float) -> None:
        """Other scales of the added adapters, one for each. Raises ValueError where there are none, or merged ones."""
        self.model = with_scales(self.model, scales)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> AnyText2Pipeline:
        """Moves the model to a device, and to float32, float16 or bfloat16 if named; returns this pipeline."""
        target = torch.device(resolve_device(str(device)))
        names = {value: name for name, value in PRECISIONS.items()}
        if dtype is not None and dtype not in names:
            raise ValueError(f"dtype {dtype}: one of {', '.join(map(str, names))}")
        self.model = move_model(self.model, target, "" if dtype is None else names[dtype])
        self._shared = {}
        return self

    @property
    def device(self) -> torch.device:
        return self.model.device

    @overload
    def __call__(
        self,
        prompt: str,
        *,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: StepCallback | None = None,
        **settings: Any,
    ) -> DrawingResult: ...

    @overload
    def __call__(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: StepCallback | None = None,
        **settings: Any,
    ) -> DrawingResults: ...

    def __call__(
        self,
        prompt: str | list[str] | tuple[str, ...],
        *,
        steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: StepCallback | None = None,
        **settings: Any,
    ) -> DrawingResult | DrawingResults:
        """Draws a prompt, or a list of prompts one after the other, each as it is drawn alone.

        steps: the same as num_inference_steps. settings: the fields of `DrawingRequest`; beside a list of prompts,
        those in `PER_PROMPT` may be lists, too (`requests_of`). generator: gives the seed, so that a second call with
        it draws other pictures; a list, as of seeds, has one for each prompt or one for each picture.
        Raises ValueError in one line for a request that cannot be drawn, of a list before anything is drawn.
        """
        if unknown := sorted(settings.keys() - DrawingRequest.__dataclass_fields__.keys()):
            raise ValueError(
                f"{unknown[0]}: no such setting; there are {', '.join(DrawingRequest.__dataclass_fields__)}"
            )
        if steps is not None:
            settings["num_inference_steps"] = steps
        is_list = isinstance(prompt, list | tuple)
        if generator is not None:
            if "seed" in settings:
                raise ValueError("seed and generator: give one of them")
            several = isinstance(generator, torch.Generator) and is_list
            given = [generator] * len(prompt) if several else generator  # one generator goes on from prompt to prompt
            settings["seed"] = [_seed(one) for one in given] if isinstance(given, list | tuple) else _seed(given)
        requests = requests_of(prompt, settings)
        if not is_list:
            return self.draw(requests[0], callback_on_step_end)
        for number, request in enumerate(requests, 1):
            self._check(request, number)
        return DrawingResults(tuple(self.draw(request, callback_on_step_end) for request in requests))

    def draw(
        self,
        request: DrawingRequest,
        callback_on_step_end: StepCallback | None = None,
        on_warning: Callable[[str], None] | None = None,
        specs: Sequence[SamplingSpec] | None = None,
    ) -> DrawingResult:
        """Draws a request. on_warning: gets each warning before anything is drawn.

        specs: ways of sampling instead of those that the request asks for.
        Raises ValueError in one line if it cannot be drawn.
        """
        chosen = self.specs(request) if specs is None else specs
        prepared = self.prepare(request)
        if on_warning is not None:
            for warning in prepared.warnings:
                on_warning(warning)
        on_step = None if callback_on_step_end is None else self._on_step(callback_on_step_end)
        rows: dict[SamplingSpec, list[SampledBatch]] = {spec: [] for spec in chosen}
        pixels = prepared.sample.position.shape[1] * prepared.sample.position.shape[2]
        at_once = max(1, PIXELS_AT_ONCE // pixels)
        shared = self.preparation(chosen, request.seed, request.negative_prompt)
        for first in range(0, request.num_images_per_prompt, at_once):
            batch = prepared.batch(first, min(at_once, request.num_images_per_prompt - first))
            for sampled in self.sample_batch(batch, chosen, shared, on_step):
                rows[sampled.spec].append(sampled)
        drawn = tuple(_drawn_row(spec, batches, prepared) for spec, batches in rows.items())
        return DrawingResult(prepared.sample.image_caption, prepared.lines, drawn, prepared.warnings)

    def _check(self, request: DrawingRequest, number: int) -> None:
        """Raises ValueError, with the prompt's number, where it cannot be drawn."""
        try:
            self.specs(request)
            self.prepare(request)
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from error

    def sample_batch(
        self,
        batch: Batch,
        specs: Sequence[SamplingSpec],
        preparation: SamplingPreparation,
        on_step: OnStep | None = None,
    ) -> Iterator[SampledBatch]:
        """Samples a batch of prompts or of a dataset in every way of `specs`."""
        inputs = preparation(batch.to(self.device).normalized())
        yield from sample_batch(self.model.roles, inputs, specs, self._schedule, self.model.sampler_options, on_step)

    def preparation(self, specs: Sequence[SamplingSpec], seed: int, negative_prompt: str = "") -> SamplingPreparation:
        """What batches share that are sampled with the same seed and negative prompt."""
        negative = negative_prompt if any(spec.guidance != 1.0 for spec in specs) else None
        if negative not in self._shared:  # only the last one is kept
            self._shared = {negative: SamplingPreparation(self.model.roles, seed, negative)}
        return self._shared[negative].with_seed(seed)

    def specs(self, request: DrawingRequest) -> tuple[SamplingSpec, ...]:
        """The ways of sampling of a request. Raises ValueError for steps that the student is not for."""
        model, student = self.model, self.model.recipe.student
        scales = {"gamma": request.gamma, "strength": request.strength, "attnx_scale": request.attnx_scale}
        if not model.has_student:
            scale = model.guidance if request.guidance_scale is None else request.guidance_scale
            steps = request.num_inference_steps or request.teacher_steps
            return (SamplingSpec("teacher", "ddim", steps, scale, **scales),)
        steps = request.num_inference_steps or model.default_steps
        if not request.any_steps:
            student.require_steps(steps, "num_inference_steps", request.sampler)
        guidance = 1.0 if request.guidance_scale is None else request.guidance_scale
        spec = SamplingSpec("student", request.sampler or model.student_sampler, steps, guidance, **scales)
        if not request.teacher:
            return (spec,)
        scale = model.guidance if request.teacher_guidance is None else request.teacher_guidance
        return (SamplingSpec("teacher", "ddim", request.teacher_steps, scale, **scales), spec)

    def _on_step(self, callback: StepCallback) -> OnStep:
        def on_step(spec: SamplingSpec, step: int, timestep: int, latent: torch.Tensor) -> None:
            callback(self, step, timestep, {"latents": latent, "spec": spec})

        return on_step


def _seed(generator: Any) -> int:
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator: expected a torch.Generator, got {generator!r}")
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _drawn_row(spec: SamplingSpec, batches: Sequence[SampledBatch], prepared: PreparedDrawing) -> DrawnRow:
    arrays = np.concatenate([to_uint8(sampled.image) for sampled in batches])
    if prepared.editing is not None:
        arrays = np.stack([prepared.editing.finish(array) for array in arrays])
    seconds = sum(sampled.seconds for sampled in batches) / len(arrays)
    return DrawnRow(spec, tuple(map(Image.fromarray, arrays)), seconds, batches[0].nfe)


def drawing_limits(recipe: Recipe) -> DrawingLimits:
    """The limits of a recipe's model.

    The tiny model was trained on pictures of one size, with Latin letters of 40 pixels and more. AnyText2 counts lines
    below 20 of 512 pixels as small, and its demo edits at twice its resolution.
    """
    resolution = recipe.data.options.resolution
    if recipe.model.config == "tiny":
        return DrawingLimits(float(SyntheticConfig().latin_height[0]), resolution, "the tiny model")
    return DrawingLimits(20 * resolution / REFERENCE_RESOLUTION, 2 * resolution)
