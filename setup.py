"""Builds the wheel; everything else about the package is in pyproject.toml.

`distill` and `launch` are names for a checkout, too general for a folder that other packages share. A wheel therefore
holds `anytext2` and `anytext2_distill`, with `launch` inside it; their imports are rewritten while they are copied. It
also holds the fonts, recipes and DeepSpeed configurations, which `anytext2/core/resources.py` finds.
`pip install -e .` installs nothing but a pointer to the checkout, whose names stay as they are.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
PLACES = {
    "anytext2": "anytext2",
    "fonts": "anytext2/fonts",
    "distill": "anytext2_distill",
    "ds_configs": "anytext2_distill/ds_configs",
    "launch": "anytext2_distill/launch",
}
"""Folder of the checkout -> folder of the wheel."""

LEFT_OUT = ("launch/bench", "launch/experiments")
"""They measure a checkout, by its paths, and write into its docs/."""

MODULES = {"distill": "anytext2_distill", "launch": "anytext2_distill.launch"}
"""Top-level module of the checkout -> its name in a wheel."""

_MODULE_NAME = re.compile(rf"(?:{'|'.join(MODULES)})(?:\.\w+)+")
_DEEPSPEED_COMMAND = re.compile(r"(\bdeepspeed [^\"'`\n]*?)\blaunch/train\.py")
_COMMAND = re.compile(r"(?:\bpython )?\blaunch/([\w/]+)\.py")


def build_tree(target: Path, commands: Mapping[str, str]) -> list[Path]:
    """Copies into `target` what a wheel holds; returns the files. commands: module in a wheel -> console script."""
    written = []
    for folder, place in PLACES.items():
        for path in _files(folder):
            to = target / place / path.relative_to(ROOT / folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":
                source = path.read_text(encoding="utf-8")
                to.write_text(name_commands(rename_imports(source, str(path)), commands), encoding="utf-8")
            else:
                shutil.copyfile(path, to)
            written.append(to)
    return written


def _files(folder: str) -> Iterator[Path]:
    """The files below a folder of the checkout that belong into a wheel."""
    for path in sorted((ROOT / folder).rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts[len(ROOT.parts) :])
        if path.is_file() and not hidden and not name.startswith(LEFT_OUT):
            yield path


def rename_imports(source: str, file: str) -> str:
    """`source` with MODULES in its import statements renamed, and nothing else changed.

    Raises SyntaxError where renaming is not enough: `import distill.x`, which binds the old name, and a string that is
    the name of a module.
    """
    lines = source.encode().splitlines(keepends=True)  # ast counts columns in bytes
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            top = node.module.split(".")[0]
            if top in MODULES:
                line, column = lines[node.lineno - 1], node.col_offset
                old, new = f"from {top}".encode(), f"from {MODULES[top]}".encode()
                if not line.startswith(old, column):
                    raise SyntaxError(f"{file}:{node.lineno}: write `from {node.module} import` on one line")
                lines[node.lineno - 1] = line[:column] + new + line[column + len(old) :]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in MODULES:
                    raise SyntaxError(f"{file}:{node.lineno}: import {alias.name}: use `from ... import ...`")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE_NAME.fullmatch(node.value):
            raise SyntaxError(f"{file}:{node.lineno}: {node.value!r} has another name in a wheel; import the module")
    return b"".join(lines).decode()


def name_commands(source: str, commands: Mapping[str, str]) -> str:
    """`source` whose texts name commands as an installed package has them: `anytext2-infer`, not `launch/infer.py`."""

    def command(found: re.Match[str]) -> str:
        module = f"{MODULES['launch']}.{found[1].replace('/', '.')}"
        return commands.get(module, found[0])

    return _COMMAND.sub(command, _DEEPSPEED_COMMAND.sub(rf"\1--module {MODULES['launch']}.train", source))


class BuildWheelTree(build_py):
    """Copies the packages as a wheel holds them."""

    def run(self) -> None:
        if self.editable_mode:
            return super().run()
        target = Path(self.build_lib)
        shutil.rmtree(target, ignore_errors=True)  # a wheel takes all that lies there, also from an earlier build
        scripts = (script.split("=") for script in self.distribution.entry_points["console_scripts"])
        build_tree(target, {where.strip().removesuffix(":main"): name.strip() for name, where in scripts})


class EditableWheel(editable_wheel):
    """Lets the console scripts call the modules by their names in a checkout."""

    def run(self) -> None:
        entry_points: dict[str, list[str]] = self.distribution.entry_points
        self.distribution.entry_points = {kind: [_unrenamed(s) for s in given] for kind, given in entry_points.items()}
        if self.dist_info_dir is not None:  # pip had it written beforehand
            file = Path(self.dist_info_dir) / "entry_points.txt"
            file.write_text(_unrenamed(file.read_text(encoding="utf-8")), encoding="utf-8")
        super().run()


def _unrenamed(scripts: str) -> str:
    return scripts.replace(f"{MODULES['launch']}.", "launch.")


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWheelTree, "editable_wheel": EditableWheel})
