"""Loads what sampling needs: a model from a checkpoint folder, and samples from annotation files.

A checkpoint's own `recipe.yaml` says how it was made, and its run folder's `run.json` on what. A PEFT adapter alone is
enough where the recipe is given.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anytext2.core.batch import Sample
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset, SampleError
from anytext2.glyphs.fonts import load_font_table
from anytext2.model.anytext2 import AnyText2
from anytext2.model.memory_format import use_gpu_format
from anytext2.model.weights import load_partial_weights
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.adapters.added import AddedAdapters
from distill.adapters.lora import load_student
from distill.adapters.merging import MergedRoles
from distill.adapters.roles import AdapterRoles, SamplingRoles
from distill.checkpoint.formats import ADAPTER_CONFIG, MODEL_WEIGHTS, TRAINER_STATE, read_adapter, read_trainer_state
from distill.checkpoint.run_folder import RECIPE, RUN_INFO, recipe_of
from distill.checkpoint.store import MANIFEST, find_checkpoint
from distill.compilation.graphs import GraphedCalls
from distill.config.differences import require_same_student
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import Recipe
from distill.data.build import FIRST_HELD_OUT_INDEX
from distill.data.judgement import judge_records
from distill.diffusion.samplers import SAMPLERS, SamplerOptions
from distill.inference.exported.files import ExportedFile, is_exported
from distill.inference.model import make_model
from distill.runtime.device_settings import apply_device_settings

DEFAULT_GUIDANCE = 7.5
_CUDA = re.compile(r"cuda(?::(\d+))?")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class SamplingModel:
    """A model ready to sample.

    checkpoint: None for the recipe's own weights. has_student: False where there is no adapter (teacher only).
    run_dir: the folder of the run that the checkpoint belongs to, None where there is none. recipe_file: what the
    overrides were laid over. added: what lies beside the student's own adapter.
    variant: tells a student with other layers (8-bit ones) from the checkpoint's own. graphs: the networks' captured
    calls, None where they run as written.
    """

    recipe: Recipe
    roles: SamplingRoles
    checkpoint: Path | None
    has_student: bool
    run_dir: Path | None
    device: torch.device
    precision: str
    recipe_file: Path
    added: AddedAdapters | None = None
    variant: str = ""
    graphs: GraphedCalls | None = None

    @property
    def sampler_options(self) -> SamplerOptions:
        return self.recipe.student.options

    @property
    def student_sampler(self) -> str:
        return self.recipe.student.sampler

    @property
    def default_steps(self) -> int:
        """The student's steps where none are asked for."""
        return self.recipe.student.default_steps(self.recipe.eval.steps)

    @property
    def guidance(self) -> float:
        """The teacher's scale where none is asked for: AnyText2's 7.5, or the middle of the distilled range."""
        low, high = self.recipe.student.guidance
        return DEFAULT_GUIDANCE if low <= DEFAULT_GUIDANCE <= high else (low + high) / 2.0

    def run_info(self) -> dict[str, Any]:
        """What the training run wrote about itself (ranks, precision, shard sizes, ...) and its `mlflow_run_id`.

        Leaves out what is not there, as beside an adapter that was copied alone.
        """
        facts: dict[str, Any] = {}
        if self.run_dir is not None and (self.run_dir / RUN_INFO).is_file():
            facts |= _read_json(self.run_dir / RUN_INFO)
        if self.checkpoint is not None and (self.checkpoint / TRAINER_STATE).is_file():
            facts["mlflow_run_id"] = read_trainer_state(self.checkpoint).tracking_run_id or None
        return facts


def load_sampling_model(
    checkpoint: Path | None,
    config: Path | None,
    overrides: Sequence[str] = (),
    precision: str = "auto",
    device: str = "auto",
    student_steps: Sequence[int] = (),
    sampler: str = "",
    merge: bool = False,
    keep_teacher: bool = True,
) -> SamplingModel:
    """Builds the model of a recipe and loads a checkpoint into it.

    checkpoint: a checkpoint-N folder, a run folder (its newest one), a folder with a PEFT adapter alone, or a file of
    launch/export.py; None: the recipe's weights as they are. config: the recipe; by default the checkpoint's, else the
    embedded one. It and the
    overrides may change anything but what a student was trained to be (`OF_STUDENT`).
    precision: fp32, fp16, bf16, or auto (fp16 on a GPU, fp32 without). student_steps, sampler: how the student is to be
    sampled (sampler empty: its own). merge: put the adapter into the student's weights, in memory; keep_teacher: with
    a second copy of the adapted layers' weights for the teacher, which cannot be sampled otherwise.
    Raises ValueError in one line; before anything is loaded for nothing to merge, or steps that the student does not
    support.
    """
    if sampler and sampler not in SAMPLERS:
        raise ValueError(f"--sampler {sampler}: one of {', '.join(SAMPLERS)}")
    target = torch.device(resolve_device(device))
    kind = ("fp16" if target.type == "cuda" else "fp32") if precision == "auto" else precision
    if kind not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: one of auto, {', '.join(PRECISIONS)}")
    if checkpoint is not None and is_exported(checkpoint):
        file = ExportedFile.open(checkpoint)
        recipe = file.recipe(config, overrides)
        for steps in student_steps:
            recipe.student.require_steps(steps, "student steps", sampler)
        roles = file.roles(recipe, merge, keep_teacher)
        opened = SamplingModel(recipe, roles, checkpoint, True, None, target, kind, config or checkpoint)
        return move_model(opened, target)
    folder = None if checkpoint is None else _checkpoint_folder(checkpoint)
    own = None if folder is None else recipe_of(folder)
    recipe_file = config or own or DEFAULT_RECIPE
    recipe = load_recipe(recipe_file, overrides)
    has_student = folder is not None and (folder / ADAPTER_CONFIG).is_file()
    if own is not None and has_student and (config or overrides):
        require_same_student(own, load_recipe(own), recipe, is_certain=own.parent == folder)
    for steps in student_steps if has_student else ():
        recipe.student.require_steps(steps, "student steps", sampler)
    if merge and not has_student:
        place = folder or f"{recipe_file} without --checkpoint"
        raise ValueError(f"--merge: {place} has no adapter; name a student's checkpoint, or leave out --merge")
    model = make_model(recipe.model, recipe.seed)
    if folder is not None and not has_student:
        load_partial_weights(model, [folder / MODEL_WEIGHTS])
    roles = _make_roles(model, folder if has_student else None, merge, keep_teacher)
    run_dir = folder.parent if folder is not None and (folder.parent / RECIPE).is_file() else None
    return move_model(SamplingModel(recipe, roles, folder, has_student, run_dir, target, kind, recipe_file), target)


def move_model(model: SamplingModel, device: torch.device, precision: str = "") -> SamplingModel:
    """The same networks on another device, in another precision of `PRECISIONS` if one is named."""
    apply_device_settings(device, tf32=False)
    precision = precision or model.precision
    for network in model.roles.networks:
        network.to(device=device, dtype=PRECISIONS[precision]).eval()
    use_gpu_format(model.roles.model)
    if model.graphs is not None:
        model.graphs.forget()
    return replace(model, device=device, precision=precision)


def _make_roles(model: AnyText2, adapter: Path | None, merge: bool, keep_teacher: bool) -> SamplingRoles:
    """The roles of the model. adapter: its folder; None: there is no student."""
    if adapter is None:
        return AdapterRoles(model.requires_grad_(False))
    student = load_student(model, adapter)
    return MergedRoles(student, keep_teacher) if merge else AdapterRoles(student)


def data_sources(given: Sequence[Path], model: SamplingModel) -> list[Path]:
    """The annotation files to take samples from: those given, else the recipe's, else the run's synthetic data.

    Raises ValueError where there are none.
    """
    recipe = model.recipe
    drawn = (model.run_dir or recipe.run_dir) / "data" / "data.json"
    sources = list(given) or [Path(source) for source in recipe.data.sources] or [drawn]
    if sources == [drawn] and not drawn.is_file():
        raise ValueError("--data: no annotation file given and none in the recipe; launch/make_dataset.py draws one")
    return sources


def held_out_sources(given: Sequence[Path], model: SamplingModel, count: int, out: Path) -> list[Path]:
    """The annotation files to measure on: those given, else `count` pictures of the run's own synthetic kind.

    The latter are drawn into `out`, from a part of the seed that no training set reaches. Raises ValueError where the
    run was trained on files: which others are held out, only their owner knows.
    """
    if given:
        return list(given)
    if model.recipe.data.sources:
        raise ValueError("--data: name an annotation file that was not trained on (data.sources of the recipe was)")
    drawn = model.recipe.data.synthetic
    write_dataset(out, count, SyntheticConfig(size=drawn.size), drawn.seed, FIRST_HELD_OUT_INDEX)
    return [out / "data.json"]


def load_dataset(sources: Sequence[Path], recipe: Recipe, judge: bool = False) -> tuple[AnyWordDataset, str]:
    """The dataset as the recipe's options read it, and a line about what was left out.

    judge: raise ValueError for a file that cannot teach, as a run does.
    """
    options, fonts = recipe.data.options, load_font_table()
    records, report = load_records(
        sources, options.wm_threshold, options.tells_watermarks, max_faulty=recipe.data.max_faulty
    )
    seen = judge_records(records, report, options, recipe.data.max_faulty_lines, fonts) if judge else ""
    return AnyWordDataset(records, options, recipe.seed, fonts), f"{report}{seen and '; ' + seen}"


def read_samples(dataset: AnyWordDataset, indices: Iterable[int]) -> tuple[list[Sample], Counter[str]]:
    """The samples of the first epoch at `indices`, and a count, by reason, of those that cannot be read.

    Raises ValueError for an empty dataset, an index beyond it, or where no sample is left.
    """
    if not len(dataset):
        raise ValueError("the data has no picture that can be used; launch/check_dataset.py says why")
    samples: list[Sample] = []
    skipped: Counter[str] = Counter()
    last = ""
    for index in indices:
        if not 0 <= index < len(dataset):
            raise ValueError(f"sample index {index}: the dataset has {len(dataset)} samples, 0 to {len(dataset) - 1}")
        try:
            samples.append(dataset.sample(index, 0))
        except SampleError as error:
            skipped[error.reason] += 1
            last = str(error)
    if not samples:
        raise ValueError(f"no chosen sample can be read ({dict(skipped)}); is data_root where the images are? {last}")
    return samples, skipped


def _checkpoint_folder(path: Path) -> Path:
    if (path / ADAPTER_CONFIG).is_file() and not (path / MANIFEST).is_file():
        read_adapter(path)  # usable alone, without a checkpoint's manifest; so it is checked by reading it
        return path
    folder = find_checkpoint(path)
    if not (folder / ADAPTER_CONFIG).is_file() and not (folder / MODEL_WEIGHTS).is_file():
        raise ValueError(f"{folder}: holds neither an adapter ({ADAPTER_CONFIG}) nor {MODEL_WEIGHTS}")
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: line {error.lineno}: {error.msg}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is needed, found {type(content).__name__}")
    return content


def resolve_device(name: str) -> str:
    """`auto` becomes cuda where there is a GPU, else cpu. Raises ValueError for a device that is not there."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    if name == "cpu":
        return name
    number = _CUDA.fullmatch(name)
    if number is None:
        raise ValueError(f"--device {name}: write auto, cpu, cuda, or cuda:1 for the second GPU")
    if not gpus:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU here"
        raise ValueError(f"--device {name}: {why}; use --device cpu")
    if int(number[1] or 0) >= gpus:
        raise ValueError(f"--device {name}: torch sees {gpus} GPU(s) here, cuda:0 to cuda:{gpus - 1}")
    return name
