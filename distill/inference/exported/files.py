"""A file of launch/export.py, or a LoRA of another program, as what is sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anytext2.model.anytext2 import AnyText2
from anytext2.model.weights import load_partial_weights
from distill.adapter_files.metadata import BASE, FORMAT, RECIPE, other_base, read_note
from distill.adapter_files.names import count_families
from distill.adapter_files.reader import is_lora, read_lora
from distill.adapters.lora import attach_student
from distill.adapters.merging import MergedRoles, StudentRoles
from distill.adapters.roles import AdapterRoles, SamplingRoles
from distill.checkpoint.formats import ADAPTER_WEIGHTS
from distill.checkpoint.store import BEST, LATEST, MANIFEST
from distill.config.differences import require_same_student
from distill.config.embedded import recipe_from_values
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import Recipe
from distill.inference.model import make_model

MERGED, MERGED_PARTS = "merged", "merged-parts"
"""Formats of whole weights, and of the weights that the LoRA changes."""


def is_exported(path: Path) -> bool:
    """Whether a path that is to be sampled is a file, or a PEFT folder of launch/export.py."""
    if path.is_file():
        return path.name not in (BEST, LATEST)
    weights = path / ADAPTER_WEIGHTS
    return weights.is_file() and not (path / MANIFEST).is_file() and read_note(weights) is not None


@dataclass(frozen=True)
class ExportedFile:
    """A file with a student, or a PEFT folder. note: what it says about itself; None for a LoRA of another program."""

    path: Path
    note: Mapping[str, Any] | None
    format: str

    @classmethod
    def open(cls, path: Path) -> ExportedFile:
        """Reads names and metadata only. Raises ValueError for a file of weights that no student is told of."""
        lora, note = is_lora(path), read_note(path / ADAPTER_WEIGHTS if path.is_dir() else path)
        if not lora and (note is None or note[FORMAT] not in (MERGED, MERGED_PARTS)):
            raise ValueError(
                f"{path}: has no metadata of a student, so nothing tells its sampler and times; draw weights of a "
                f"teacher with model.weights={path} and without --checkpoint"
            )
        return cls(path, note, "lora" if lora or note is None else note[FORMAT])

    def recipe(self, config: Path | None, overrides: Sequence[str]) -> Recipe:
        """`config` with the overrides, else the file's own recipe, else the embedded one.

        Raises ValueError where that describes another student.
        """
        if self.note is None:
            return load_recipe(config or DEFAULT_RECIPE, overrides)
        values = self.note[RECIPE]
        own = recipe_from_values(values, str(self.path))
        if config is None and not overrides:
            return own
        recipe = (
            recipe_from_values(values, str(self.path), overrides) if config is None else load_recipe(config, overrides)
        )
        require_same_student(self.path, own, recipe, is_certain=True)
        return recipe

    def roles(self, recipe: Recipe, merge: bool, keep_teacher: bool) -> SamplingRoles:
        """Loads the weights. Raises ValueError in one line for those that do not fit, or nothing to merge."""
        if self.format == "lora":
            return self._of_lora(recipe, merge, keep_teacher)
        if merge:
            raise ValueError(f"--merge: {self.path} is merged already; leave out --merge")
        if self.format == MERGED:
            model = make_model(replace(recipe.model, weights=str(self.path), parts=[]), recipe.seed)
        else:
            model = self._base(recipe)
            if difference := other_base(self.note or {}, model):
                raise ValueError(f"{self.path}: {difference}")
            load_partial_weights(model, [self.path])
        return StudentRoles(model, lambda: self._base(recipe))

    def _of_lora(self, recipe: Recipe, merge: bool, keep_teacher: bool) -> SamplingRoles:
        model = self._base(recipe)
        if difference := other_base(self.note or {}, model):
            print(f"warning: {self.path} {difference}", flush=True)
        weights = read_lora(self.path, model)
        counts = ", ".join(f"{family} {n}" for family, n in count_families(weights.modules).items())
        left_out = {**weights.left_out, **((self.note or {}).get("left_out") or {})}
        missing = ", ".join(f"{family} {n}" for family, n in left_out.items())
        print(f"LoRA of {counts} layers in {weights.format} names{missing and f'; not in it: {missing}'}", flush=True)
        student = attach_student(model, weights)
        return MergedRoles(student, keep_teacher) if merge else AdapterRoles(student)

    def _base(self, recipe: Recipe) -> AnyText2:
        """The network with the teacher's weights. Raises ValueError where the recipe does not tell them."""
        file = ((self.note or {}).get(BASE) or {}).get("file")
        try:
            return make_model(recipe.model, recipe.seed)
        except ValueError as error:
            hint = f"; this student was made of {file}: give model.weights=FILE" if file else ""
            raise ValueError(f"{self.path}: {error}{hint}") from error
