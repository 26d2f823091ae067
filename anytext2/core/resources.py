"""Finds the files that travel with the code: fonts, recipes and DeepSpeed's configurations.

In a checkout they lie in folders of the repository's root; a wheel holds them inside the packages (see setup.py).
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = _PACKAGE.parent
_IN_WHEEL = {
    "fonts": "anytext2/fonts",
    "ds_configs": "anytext2_distill/ds_configs",
    "launch": "anytext2_distill/launch",
}
"""Where a wheel holds a folder of the repository's root, relative to the folder that the packages are installed in."""


def is_installed() -> bool:
    """Whether this code runs from an installed wheel. False in a checkout, also after `pip install -e`."""
    return (_PACKAGE / "fonts").is_dir()


def resource(name: str) -> Path:
    """A shipped file or folder by its path in the repository, as in `fonts/fonts.yaml`, wherever it is installed."""
    if not is_installed():
        return _ROOT / name
    folder, _, rest = name.partition("/")
    return _ROOT / _IN_WHEEL[folder] / rest


def find_shipped(path: Path, folder: str, option: str) -> Path:
    """`path` where there is such a file, else the file of the shipped `folder` that it names.

    A shipped file is named alone or by its path in the repository: `zero2.json` or `ds_configs/zero2.json`.

    Raises ValueError in one line that names `option` and the files that are shipped.
    """
    if path.is_file():
        return path
    shipped = resource(folder) / path.name
    if path.parent in (Path(), Path(folder)) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(file.name for file in shipped.parent.glob(f"*{path.suffix}") if file.is_file()))
    raise ValueError(f"{option} {path}: no such file (shipped in {folder}: {names})")


def shell_command(script: str, *arguments: object) -> str:
    """A line for a shell, from the present folder, that runs a command of this package with this Python.

    script: the command's path in the repository (in a wheel, the name of the console script takes its place).
    """
    python = Path(sys.executable)
    words = [python.with_name(script)] if is_installed() else [python, resource(script)]
    return shlex.join([*map(_from_here, words), *map(str, arguments)])


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
