"""Nothing that is read may run code, and nothing that a recipe or an annotation says may lead out of its folder."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from anytext2.data.annotations import load_records
from anytext2.model.weights import read_state_dict, save_weights
from distill.checkpoint.formats import read_tensors
from distill.checkpoint.store import CheckpointError
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from launch import export_weights, train
from tests.helpers.models.mini_model import mini_model
from tests.helpers.paths import ROOT
from tests.helpers.processes.ranks import all_output, run_ranks

PACKAGES = ("anytext2", "distill", "launch")
HARMLESS_PICKLE = {"UnpicklingError", "PickleError"}
UNSAFE_MODULES = {"dill", "cloudpickle", "joblib", "shelve", "marshal", "cPickle", "_pickle"}
UNSAFE_CALLS = {"os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load"}
UNSAFE_BUILTINS = {"eval", "exec", "compile", "__import__"}


# --- the source ---


def dotted(node: ast.AST) -> str:
    """`a.b.c` for an attribute chain, '' for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (stem := dotted(node.value)):
        return f"{stem}.{node.attr}"
    return ""


def unsafe(source: str) -> Iterator[str]:
    """What in `source` could run code that a file or a setting brings along; one line each."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (f"{node.lineno}: {found}" for found in unsafe_imports(node))
        elif isinstance(node, ast.Attribute) and dotted(node.value) == "pickle" and node.attr not in HARMLESS_PICKLE:
            yield f"{node.lineno}: pickle.{node.attr}"
        elif isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {found}" for found in unsafe_call(node))


def unsafe_imports(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] in UNSAFE_MODULES or (alias.asname and alias.name in ("pickle", "os", "yaml")):
                yield f"import {alias.name}"
        return
    for alias in node.names:
        name = f"{node.module}.{alias.name}"
        harmless = alias.name in HARMLESS_PICKLE
        if node.module in UNSAFE_MODULES or name in UNSAFE_CALLS or name in ("torch.load", "numpy.load"):
            yield f"from {node.module} import {alias.name}"
        elif node.module == "pickle" and not harmless:
            yield f"from pickle import {alias.name}"


def unsafe_call(call: ast.Call) -> Iterator[str]:
    name = dotted(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in UNSAFE_CALLS | UNSAFE_BUILTINS:
        yield name
    if name == "torch.load" and not is_constant(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if "allow_pickle" in given and not is_constant(given["allow_pickle"], False):
        yield "allow_pickle"
    if "shell" in given and not is_constant(given["shell"], False):
        yield "shell"


def is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.heavy
def test_no_source_file_can_run_what_it_reads() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 70
    assert [f"{p.relative_to(ROOT)}:{found}" for p in paths for found in unsafe(p.read_text("utf-8"))] == []
    loads = [p.name for p in paths if "torch.load(" in p.read_text("utf-8")]
    assert "weights.py" in loads  # the walk sees what it is for


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=safe)",
        "from torch import load",
        "pickle.loads(b)",
        "pickle.Unpickler(f).load()",
        "from pickle import load",
        "import pickle as p",
        "import joblib",
        "def f():\n    import dill",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "os.system(command)",
        "from os import system",
        "subprocess.run(command, shell=True)",
        "subprocess.Popen(command, shell=wanted)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_each_unsafe_way_is_seen(source: str) -> None:
    assert len(list(unsafe(source))) == 1


def test_what_is_safe_is_not_complained_of() -> None:
    safe = "torch.load(p, map_location='cpu', weights_only=True)\nmodel.eval()\nre.compile(x)\nOmegaConf.load(p)\n"
    safe += "try:\n    pass\nexcept pickle.UnpicklingError:\n    pass\nsubprocess.run(['git'], check=True)\n"
    assert list(unsafe("import pickle\n" + safe)) == []


# --- files that are not what they say ---


class Evil:
    """Unpickled the ordinary way it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._mark}",)


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1), "b": Evil(tmp_path / "it_ran")}}, path)
    return path


def test_the_malicious_file_would_do_harm(evil: Path, tmp_path: Path) -> None:
    torch.load(evil, weights_only=False)
    assert (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_its_code_does_not_run(tmp_path: Path, zipped: bool) -> None:
    for suffix in (".ckpt", ".pt", ".pth", ".bin"):
        path = tmp_path / f"evil{suffix}"
        torch.save({"b": Evil(tmp_path / "it_ran")}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=rf"evil{suffix}: refused: .*system") as caught:
            read_state_dict(path)
        assert "\n" not in str(caught.value) and "weights_only=False" not in str(caught.value)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.process
def test_commands_refuse_it_with_one_line(evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert export_weights.main(["--weights", str(evil), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {evil}: refused: ") and not out.exists()
    argv = ["--deepspeed", str(ROOT / "ds_configs/zero2.json"), f"model.weights={evil}", f"run_root={tmp_path}"]
    (result,) = run_ranks(1, run_training, argv)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.exit_code == 2 and len(errors) == 1 and f"{evil}: refused: " in errors[0], all_output([result])
    assert "Traceback" not in result.stderr and not (tmp_path / "it_ran").exists()


def run_training(argv: list[str]) -> None:
    raise SystemExit(train.main(argv))


def test_a_pickle_under_a_safe_name_is_refused(evil: Path, tmp_path: Path) -> None:
    disguised = tmp_path / "optimizer.safetensors"
    disguised.write_bytes(evil.read_bytes())
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors") as caught:
        read_tensors(disguised)
    with pytest.raises(ValueError, match=r"optimizer\.safetensors: not a readable weights file"):
        read_state_dict(disguised)
    assert "\n" not in str(caught.value) and not (tmp_path / "it_ran").exists()


def test_an_honest_file_is_still_read(tmp_path: Path) -> None:
    save_weights(mini_model(), tmp_path / "w.ckpt")
    assert read_state_dict(tmp_path / "w.ckpt")


def test_yaml_in_recipes_and_model_configs_makes_no_objects(tmp_path: Path) -> None:
    mark = tmp_path / "it_ran"
    recipe = tmp_path / "evil.yaml"
    recipe.write_text(f"name: !!python/object/apply:os.system ['touch {mark}']\n")
    with pytest.raises(ValueError, match=r"evil\.yaml: not valid YAML"):
        load_recipe(recipe)
    with pytest.raises(ValueError, match="override"):
        load_recipe(DEFAULT_RECIPE, [f"name=!!python/object/apply:os.system ['touch {mark}']"])
    assert not mark.exists()


# --- paths ---


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "..", ".", "a\\b", "a\0b", "a\nb", " ", "x/.."])
def test_a_run_s_name_is_one_folder_in_run_root(name: str) -> None:
    with pytest.raises(ValueError, match="name=") as caught:
        load_recipe(DEFAULT_RECIPE, ["run_root=runs", f"name={json.dumps(name)}"])
    assert "\n" not in str(caught.value) and "run_root" in str(caught.value)


@pytest.mark.parametrize("name", ["demo", "a=b", "..a", "2026-11-20 lr 1e-4", "招牌"])
def test_ordinary_names_are_taken(name: str) -> None:
    recipe = load_recipe(DEFAULT_RECIPE, ["run_root=runs", f"name={json.dumps(name)}"])
    assert recipe.run_dir.resolve().parent == Path("runs").resolve()


@pytest.mark.parametrize("root", ["", " ", "a\0b"])
def test_run_root_is_a_folder(root: str) -> None:
    with pytest.raises(ValueError, match="run_root="):
        load_recipe(DEFAULT_RECIPE, [f"run_root={json.dumps(root)}"])


def test_pictures_of_annotation_files_lie_under_data_root(tmp_path: Path) -> None:
    names = ["../a.png", "b/../../a.png", "/etc/passwd", "..", "ok.png"]
    (tmp_path / "d.json").write_text(
        json.dumps({"data_root": str(tmp_path), "data_list": [{"img_name": name} for name in names]})
    )
    records, report = load_records(tmp_path / "d.json", max_faulty=1.0)
    assert [record.name for record in records] == ["ok.png"]
    assert report.skipped["pictures: name outside data_root"] == 4


# --- what listens ---

LISTENS = re.compile(r"mlflow (ui|server)|launch/demo\.py")


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md"), *ROOT.glob("launch/**/*.sh")]


def test_every_command_that_listens_names_the_loopback_address() -> None:
    lines = [(p.name, line) for p in documents() for line in p.read_text("utf-8").splitlines()]
    listening = [(name, line) for name, line in lines if re.search(r"mlflow (ui|server)\b", line) and "--" in line]
    assert any(name == "README.md" for name, _ in listening)
    assert [found for found in listening if "--host 127.0.0.1" not in found[1]] == []
    assert [found for found in lines if "0.0.0.0" in found[1]] == []


def test_no_source_file_listens_everywhere() -> None:
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert [p.name for p in sources if re.search(r"0\.0\.0\.0|share=True", p.read_text("utf-8"))] == []
