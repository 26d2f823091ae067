"""Adapters of trainings, read by releases of PEFT in environments of their own: `python -m tests.compat.peft_releases`.

The environments lie in build/compat. They take torch and what else they lack from the project's environment.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from distill.checkpoint.store import find_checkpoint
from launch import export
from tests.helpers.paths import ROOT
from tests.helpers.processes.ranks import returned, run_ranks
from tests.helpers.processes.training_runs import SMALL_BATCH, TrainingFolder, train_command

WHERE = ROOT / "build" / "compat"
EXPORTED = WHERE / "exported"
READER = ROOT / "tests" / "compat" / "read_adapter.py"
RELEASES = {
    "0.6.2": (
        "peft==0.6.2",
        "transformers==4.35.2",
        "tokenizers==0.15.2",
        "huggingface_hub==0.19.4",
        "accelerate==0.25.0",
    ),
    "0.12.0": (
        "peft==0.12.0",
        "transformers==4.44.2",
        "tokenizers==0.19.1",
        "huggingface_hub==0.24.7",
        "accelerate==0.33.0",
    ),
    "newest": ("peft",),
}
"""The oldest one that writes safetensors, one in between, and whatever is the newest."""
KINDS = {"lora": list(RELEASES), "rslora": ["0.12.0", "newest"], "dora": ["0.12.0", "newest"]}
"""The kinds of adapters, and the releases that know them."""


def environment(release: str) -> Path:
    """The Python of a release's environment, which is made where it is not there."""
    folder = WHERE / f"peft-{release}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.is_file() and release != "newest":
        return python
    run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", *RELEASES[release])
    (packages,) = folder.glob("lib/python*/site-packages")
    # After the installation: pip would take the project's packages for its own.
    (packages / "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    complete.touch()
    return python


def run(*command: str) -> None:
    subprocess.run(command, check=True, cwd=WHERE)


def train(folder: Path, kind: str) -> Path:
    """A folder with the adapter of a training of two updates, and nothing else. Of kind lora it is also exported."""
    runs = TrainingFolder.create(folder, 8)
    settings = [*SMALL_BATCH, "data.part=all", "train.max_steps=2", f"lora.kind={kind}", f"name={kind}"]
    returned(run_ranks(1, train_command, runs.argv(kind, *settings)))
    (WHERE / kind).mkdir(exist_ok=True)
    for file in find_checkpoint(runs.run_dir(kind)).glob("adapter_*"):
        (WHERE / kind / file.name).write_bytes(file.read_bytes())
    if kind == "lora":
        assert export.main([str(runs.run_dir(kind)), "--format", "peft", "--out", str(EXPORTED)]) == 0
    return WHERE / kind


def main() -> int:
    WHERE.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        adapters = {kind: train(Path(folder) / kind, kind) for kind in KINDS}
    for release in RELEASES:
        python = environment(release)
        run(
            str(python),
            "-I",
            "-W",
            "error::UserWarning:peft",
            str(READER),
            *(str(adapters[k]) for k in KINDS if release in KINDS[k]),
            str(EXPORTED),
        )
    print(f"read by all releases, in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
