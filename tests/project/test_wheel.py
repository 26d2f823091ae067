"""What `pip install .` gives: a wheel with its data, whose names are its own, that trains and draws anywhere."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from anytext2.core.resources import find_shipped, resource
from tests.helpers.paths import ROOT
from tests.helpers.processes.ports import free_port

SHORT = ["train.effective_batch=2", "train.micro_batch=2", "data.synthetic.count=8", "log.preview_every=0"]
FOREIGN = "OWNER = 'another package'\n"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py, imported without building anything."""
    spec = importlib.util.spec_from_file_location("anytext2_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what is copied, and how it is rewritten ---


@pytest.mark.heavy
def test_no_import_of_the_tree_names_a_package_of_the_checkout(build: ModuleType, tmp_path: Path) -> None:
    written = build.build_tree(tmp_path, {})
    assert {path.relative_to(tmp_path).parts[0] for path in written} == {"anytext2", "anytext2_distill"}
    for path in written:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"distill", "launch"}, path


@pytest.mark.heavy
def test_every_data_file_of_the_checkout_is_in_the_tree(build: ModuleType, tmp_path: Path) -> None:
    build.build_tree(tmp_path, {})
    for place, pattern in (("anytext2/fonts", "fonts/*"), ("anytext2_distill/ds_configs", "ds_configs/*.json")):
        names = {path.name for path in ROOT.glob(pattern)}
        assert names and {path.name for path in (tmp_path / place).iterdir()} == names
    launch = tmp_path / "anytext2_distill" / "launch"
    recipes = {path.name for path in (ROOT / "launch" / "recipes").glob("*.yaml")}
    assert {path.name for path in (launch / "recipes").iterdir()} == recipes
    assert (launch / "slurm" / "supervise.sh").is_file() and (launch / "slurm" / "train.sbatch").is_file()
    assert (tmp_path / "anytext2" / "configs" / "anytext2_tiny.safetensors").is_file()
    assert (tmp_path / "anytext2" / "py.typed").is_file() and (tmp_path / "anytext2_distill" / "py.typed").is_file()


def test_imports_are_renamed_and_nothing_else(build: ModuleType) -> None:
    source = (
        "from distill.runtime import signals\n"
        "from distillery import x\n"
        "from . import launch\n"
        "def f():\n"
        "    'é'; from launch.slurm.submit import main  # from launch import nothing\n"
        "    return 'from distill import y', launch.z\n"
        "if __name__ == '__main__':\n"
        "    f()\n"
    )
    expected = source.replace("from distill.runtime", "from anytext2_distill.runtime").replace(
        "from launch.slurm", "from anytext2_distill.launch.slurm"
    )
    assert build.rename_imports(source, "x.py") == expected


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import distill.runtime", "x.py:1: import distill.runtime: use `from"),
        ("\nimport launch", "x.py:2: import launch"),
        ("name = 'launch.train'", "'launch.train' has another name in a wheel"),
        ("from  distill import x", "on one line"),
    ],
)
def test_what_cannot_be_renamed_stops_the_build(build: ModuleType, source: str, words: str) -> None:
    with pytest.raises(SyntaxError, match=words.replace("(", r"\(")):
        build.rename_imports(source, "x.py")


@pytest.mark.parametrize(
    ("text", "installed"),
    [
        ("`python launch/infer.py --out DIR`", "`anytext2-infer --out DIR`"),
        ("launch/slurm/submit.py says", "anytext2-submit says"),
        (
            "deepspeed --master_port 1 launch/train.py ...",
            "deepspeed --master_port 1 --module anytext2_distill.launch.train ...",
        ),
        ("launch/other.py", "launch/other.py"),
    ],
)
def test_messages_name_the_installed_commands(build: ModuleType, text: str, installed: str) -> None:
    commands = {
        "anytext2_distill.launch.infer": "anytext2-infer",
        "anytext2_distill.launch.slurm.submit": "anytext2-submit",
    }
    assert build.name_commands(text, commands) == installed


# --- shipped files by name ---


@pytest.mark.parametrize("name", ["zero2.json", "ds_configs/zero2.json"])
def test_a_shipped_file_is_found_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_shipped(Path(name), "ds_configs", "--deepspeed") == ROOT / "ds_configs" / "zero2.json"


def test_a_file_of_one_s_own_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero2.json").write_text("{}")
    assert find_shipped(Path("zero2.json"), "ds_configs", "--deepspeed") == Path("zero2.json")


@pytest.mark.parametrize("name", ["zero9.json", "elsewhere/zero2.json", "/zero2.json"])
def test_a_file_that_is_nowhere_is_refused_with_those_that_are_shipped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        find_shipped(Path(name), "ds_configs", "--deepspeed")
    shipped = "zero2.json, zero2_bf16.json, zero2_cpu.json"
    assert str(error.value) == f"--deepspeed {name}: no such file (shipped in ds_configs: {shipped})"


def test_resources_of_a_checkout_lie_at_its_root() -> None:
    assert resource("fonts") == ROOT / "fonts"
    assert resource("launch/recipes/demo.yaml") == ROOT / "launch" / "recipes" / "demo.yaml"


# --- the wheel itself ---


@dataclass(frozen=True)
class Installed:
    """A wheel in an environment of its own, and an empty folder to work in."""

    wheel: Path
    site: Path
    python: Path
    work: Path

    def run(self, *words: object) -> str:
        """Runs a command of the environment from `work`; what it printed. It sees no checkout."""
        environment = without_checkout() | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"}
        command = [str(self.python.parent / str(words[0])), *map(str, words[1:])]
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def checkout_in(folder: Path) -> Path:
    """A copy of what a build reads: building in the checkout itself would disturb what else runs there."""
    names = [path for path in ROOT.iterdir() if path.suffix in (".toml", ".md", ".in", ".lock", ".py")]
    names += [ROOT / name for name in ("anytext2", "distill", "launch", "fonts", "ds_configs", "LICENSE")]
    folder.mkdir()
    for path in names:
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(path, folder / path.name)
    return folder


def without_checkout() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def python(cwd: Path, *words: object) -> None:
    """Runs Python in a folder other than the checkout, whose egg-info would pass for an installed package."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=without_checkout(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Builds an sdist, from it a wheel, and installs that beside a foreign package called `launch`."""
    place = tmp_path_factory.mktemp("wheel")
    source = checkout_in(place / "checkout")
    python(source, "-c", f"from setuptools.build_meta import build_sdist as b; b({str(place)!r})")
    (sdist,) = place.glob("*.tar.gz")
    python(place, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", place, sdist)
    (wheel,) = place.glob("*.whl")
    python(place, "-m", "venv", "--without-pip", place / "venv")
    executable = place / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place / "venv"), "platbase": str(place / "venv")}))
    (site / "launch").mkdir()
    (site / "launch" / "__init__.py").write_text(FOREIGN)
    python(place, "-m", "pip", "--python", executable, "install", "--no-deps", "--no-index", wheel)
    # The dependencies come from here. Named by a .pth file, their folder's own .pth files are not read, so that the
    # checkout of an editable install stays out of sight.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (place / "work").mkdir()
    return Installed(wheel, site, executable, place / "work")


@pytest.mark.slow
def test_the_wheel_of_an_sdist_holds_the_tree_of_the_checkout(
    installed: Installed, build: ModuleType, tmp_path: Path
) -> None:
    tree = {path.relative_to(tmp_path).as_posix() for path in build.build_tree(tmp_path, {})}
    with zipfile.ZipFile(installed.wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == tree


@pytest.mark.slow
def test_the_wheel_installs_no_general_name(installed: Installed) -> None:
    names = {path.name.split("-")[0] for path in installed.site.iterdir()}
    assert names == {"anytext2", "anytext2_distill", "launch", "dependencies.pth"}
    assert (installed.site / "launch" / "__init__.py").read_text() == FOREIGN
    assert [path.name for path in (installed.site / "launch").iterdir() if path.is_file()] == ["__init__.py"]
    told = installed.run(
        "python", "-c", "import anytext2_distill, launch; print(anytext2_distill.__file__, launch.OWNER)"
    )
    assert told.split("\n")[0] == f"{installed.site / 'anytext2_distill' / '__init__.py'} another package"


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_trains_and_draws_from_another_folder(installed: Installed) -> None:
    told = installed.run("anytext2-train", "--deepspeed", "zero2.json", *SHORT, "train.max_steps=2", "log.every=1")
    assert "demo.yaml" in told and "step 2/2" in told
    drawn = installed.run("anytext2-infer", "--checkpoint", "runs/demo", "--steps", "1", "--out", "drawn")
    assert "wrote 1 pictures" in drawn
    with Image.open(installed.work / "drawn" / "grid.png") as grid:
        assert grid.width > 3 * 128 and grid.convert("L").getextrema() != (255, 255)
    # The launcher for several GPUs, here with one rank, takes the run up.
    launcher = Path(sys.executable).parent / "deepspeed"
    module = ["--master_port", free_port(), "--module", "anytext2_distill.launch.train", "--deepspeed", "zero2.json"]
    told = installed.run("python", launcher, *module, *SHORT, "train.max_steps=3")
    assert "resuming from runs/demo/checkpoint-2" in told and (installed.work / "runs/demo/checkpoint-3").is_dir()


@pytest.mark.slow
def test_every_console_script_starts_and_a_job_script_names_installed_files(installed: Installed) -> None:
    scripts = sorted(path.name for path in installed.python.parent.glob("anytext2-*"))
    assert len(scripts) == console_scripts()
    modules = [line.split("import")[0] for name in scripts for line in _import_lines(installed.python.parent / name)]
    installed.run("python", "-c", "\n".join(f"{line}import main" for line in modules))
    script = installed.run("anytext2-submit", "rtx4090x3.yaml", "--dry-run")
    slurm = installed.site / "anytext2_distill" / "launch" / "slurm"
    assert f"source {slurm / 'supervise.sh'}" in script and f"{slurm.parent / 'train.py'} --deepspeed" in script
    assert f"--chdir={installed.work}" in script and f"ANYTEXT2_BIN={installed.python.parent}" in script


def console_scripts() -> int:
    """How many of them pyproject.toml names."""
    return len(re.findall(r"^anytext2-[\w-]+ = ", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M))


def _import_lines(script: Path) -> list[str]:
    return [line for line in script.read_text().splitlines() if line.startswith("from anytext2")]


@pytest.mark.slow
def test_an_editable_install_has_the_same_scripts_for_the_names_of_the_checkout(tmp_path: Path) -> None:
    source = checkout_in(tmp_path / "checkout")
    code = (
        "from setuptools import build_meta as b; "
        f"name = b.prepare_metadata_for_build_editable({str(tmp_path)!r}); "
        f"b.build_editable({str(tmp_path)!r}, metadata_directory={str(tmp_path)!r} + '/' + name)"
    )
    python(source, "-c", code)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (file,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        scripts = archive.read(file).decode()
        assert not any(name.startswith(("distill/", "launch/")) for name in archive.namelist())
    assert "anytext2-train = launch.train:main" in scripts and "anytext2_distill" not in scripts
    assert scripts.count(" = launch.") == console_scripts()
