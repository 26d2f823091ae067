"""Each format, written and read back: the same eps as the student's for the same noise and conditions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from anytext2.model.weights import load_weights, official_state_dict, read_state_dict
from distill.adapter_files.metadata import METADATA, read_note
from distill.adapter_files.names import diffusers_path
from distill.adapter_files.reader import read_lora
from distill.adapters.lora import attach_student
from distill.export import FORMATS, formats
from distill.export.exported import Export, ExportOptions
from distill.export.formats import WRITERS, export
from distill.export.student import Student, read_student
from distill.inference.exported.files import ExportedFile
from tests.helpers.models.small_sd import ALPHA, RANK, small_eps, small_sd, write_small_run

WHOLE = ("peft", "safetensors", "merged", "merged-parts")
PART = ("kohya", "diffusers")


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Student]:
    found = {}
    for kind in ("lora", "rslora", "dora"):
        targets = "decoder" if kind == "dora" else "paper"
        found[kind] = read_student(write_small_run(tmp_path_factory.mktemp(kind), kind, targets), None, [])
    return found


def written(student: Student, format_: str, folder: Path, dtype: str = "fp32") -> Export:
    suffix = "" if format_ == "peft" else ".safetensors"
    return export(student, format_, folder / f"out{suffix}", ExportOptions(dtype))


def eps_of_file(path: Path, overrides: list[str]) -> torch.Tensor:
    file = ExportedFile.open(path)
    roles = file.roles(file.recipe(None, overrides), merge=False, keep_teacher=False)
    return small_eps(roles.model)


def eps_of_student(student: Student, part: bool = False) -> torch.Tensor:
    """part: with the layers of the plain UNet alone."""
    weights = student.weights
    if part:
        kept = [m for m in weights.modules if diffusers_path(m, student.model.cfg.unet)]
        tensors = {n: t for n, t in weights.tensors.items() if n.split(".lora_")[0] in kept}
        ranks, alphas = ({m: found[m] for m in kept} for found in (weights.ranks, weights.alphas))
        weights = replace(weights, tensors=tensors, ranks=ranks, alphas=alphas)
    model = small_sd()
    attach_student(model, weights)
    return small_eps(model)


def test_every_format_has_a_writer() -> None:
    assert tuple(WRITERS) == FORMATS


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_the_same_eps_from_every_file(students: dict[str, Student], kind: str, tmp_path: Path) -> None:
    student = students[kind]
    base = [f"model.weights={student.recipe.model.weights}"]
    wanted, teacher = eps_of_student(student), small_eps(small_sd())
    assert (wanted - teacher).abs().max() > 0.05
    for format_ in WHOLE:
        (tmp_path / format_).mkdir()
        path = written(student, format_, tmp_path / format_).path
        assert (eps_of_file(path, [] if format_ == "merged" else base) - wanted).abs().max() < 1e-5, format_
    wanted = None
    for format_ in PART:
        (tmp_path / format_).mkdir()
        if kind == "dora":
            with pytest.raises(ValueError, match=f"--format {format_}: no DoRA is written"):
                written(student, format_, tmp_path / format_)
            continue
        wanted = eps_of_student(student, part=True) if wanted is None else wanted
        found = written(student, format_, tmp_path / format_)
        assert (eps_of_file(found.path, base) - wanted).abs().max() < 1e-5, format_
        assert found.note["left_out"].keys() == {"attnx of the UNet", "WriteNet"}
        assert found.layers + sum(found.note["left_out"].values()) == len(student.weights.modules)


@pytest.mark.heavy
@pytest.mark.parametrize(("suffix", "dtype"), [(".safetensors", "fp16"), (".ckpt", "fp32")])
def test_merged_is_the_checkpoint_key_by_key(
    students: dict[str, Student], suffix: str, dtype: str, tmp_path: Path
) -> None:
    student = students["lora"]
    path = export(student, "merged", tmp_path / f"merged{suffix}", ExportOptions(dtype)).path
    state, contract = read_state_dict(path), official_state_dict(small_sd())
    assert list(sorted(state)) == sorted(contract)
    changed = {f"{module}.weight" for module in student.weights.modules}
    for name, tensor in contract.items():
        kept = "." not in name or ".running_" in name or not tensor.is_floating_point() or dtype == "fp32"
        assert state[name].dtype == (tensor.dtype if kept else torch.float16) and state[name].shape == tensor.shape
        assert torch.equal(state[name], tensor.to(state[name].dtype)) == (name not in changed), name
    model = small_sd()
    load_weights(model, path)
    assert (small_eps(model) - eps_of_student(student)).abs().max() < (1e-5 if dtype == "fp32" else 0.02)
    if suffix == ".ckpt":  # as the reference program does
        content = torch.load(path, map_location="cpu", weights_only=True)
        assert set(content) == {"state_dict", METADATA}
        torch.nn.Module.load_state_dict(small_sd().model, _below(content["state_dict"], "model."), strict=True)


def _below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def test_merged_parts_are_what_changed(students: dict[str, Student], tmp_path: Path) -> None:
    student = students["lora"]
    path = written(student, "merged-parts", tmp_path).path
    assert read_state_dict(path).keys() == {f"{module}.weight" for module in student.weights.modules}
    with pytest.raises(ValueError, match="other base weights .small.safetensors, distance .*; give model.weights"):
        eps_of_file(path, ["model.weights=scratch"])


@pytest.mark.parametrize("format_", FORMATS)
def test_metadata(students: dict[str, Student], format_: str, tmp_path: Path) -> None:
    student = students["lora"]
    path = written(student, format_, tmp_path).path
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    with safe_open(file, "pt") as content:
        metadata = content.metadata()
    is_part, is_merged = format_ in PART, "merged" in format_
    architecture = "stable-diffusion-v1/lora" if is_part else "anytext2" + ("" if is_merged else "/lora")
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["modelspec.prediction_type"] == "epsilon" and metadata["modelspec.resolution"] == "64x64"
    assert "timesteps 999, 759, 499, 259; guidance 1" in metadata["modelspec.usage_hint"]
    assert ("ss_network_dim" in metadata) == (not is_merged)
    if not is_merged:
        assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == (str(RANK), str(ALPHA))
    note = read_note(file)
    assert note is not None and note == json.loads(metadata[METADATA])
    assert (note["objective"], note["sampler"], note["steps"], note["guidance"]) == ("phased", "phased", 4, 1.0)
    assert note["times"]["4"] == [999, 759, 499, 259] and note["updates"] == 5
    assert note["base"]["file"] == "small.safetensors" and len(note["base"]["sha256"]) == 64
    assert "weights" not in note["recipe"]["model"] and "run_root" not in note["recipe"]  # another machine's paths


@pytest.mark.parametrize("format_", [f for f in FORMATS if "merged" not in f])
def test_a_file_is_exported_again(students: dict[str, Student], format_: str, tmp_path: Path) -> None:
    student = students["rslora"]
    base = [f"model.weights={student.recipe.model.weights}"]
    again = read_student(written(student, format_, tmp_path).path, None, base)
    assert again.updates == 5 and again.steps == student.steps
    whole = export(again, "safetensors", tmp_path / "again.safetensors", ExportOptions())
    weights = read_lora(whole.path, student.model)
    for module in again.weights.modules:
        assert weights.scale(module) == pytest.approx(again.weights.scale(module))
    assert (weights.kind == "rslora") == (format_ not in PART)


def test_no_room_and_values_beyond_half_precision(
    students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = students["lora"]
    first = next(iter(student.weights.tensors))
    large = dict(student.weights.tensors) | {first: student.weights.tensors[first] * 1e9}
    loud = replace(student, weights=replace(student.weights, tensors=large))
    for format_ in ("safetensors", "merged", "merged-parts"):
        with pytest.raises(ValueError, match="beyond the range of float16; use --dtype fp32"):
            written(loud, format_, tmp_path, "fp16")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    for format_ in FORMATS:
        with pytest.raises(OSError, match="no room"):
            written(student, format_, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_plain_unet_has_nothing_of(tmp_path: Path) -> None:
    student = read_student(write_small_run(tmp_path, targets=r"\.attn2x\.to_k"), None, [])
    for format_ in PART:
        with pytest.raises(ValueError, match=r"no layer .* is one of the plain UNet .attnx of the UNet 7."):
            written(student, format_, tmp_path)
    assert formats.NEED_BASE == ("merged", "merged-parts")
