"""Builds the CUDA without a GPU for the PyTorch of this interpreter, which must be a CUDA build.

`runtime.cpp` and `streams.cpp` stand for the CUDA runtime, `libraries.cpp` for cuBLAS, cuDNN, NCCL and the driver.
Everything else that PyTorch asks of them is made here as a function that answers 0.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch

SOURCES = Path(__file__).parent
COMPUTES = re.compile(r"cublas.*(gemm|gemv|dot|trsm|Batched)", re.IGNORECASE)
STANDS_FOR = re.compile(r"(__)?cuda|cublas|cudnn|nccl|cu[A-Z]")


def build(folder: Path, headers: Path) -> dict[str, str]:
    """Compiles into `folder`; returns the environment of a process that is to see a GPU.

    headers: of nvidia-cuda-crt, beside those that come with PyTorch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    site = Path(torch.__file__).parent.parent
    include = [f"-I{site / 'nvidia/cu13/include'}", f"-I{headers}"]
    runtime, libraries, driver = folder / "libnull_cudart.so", folder / "libnull_cuda.so", folder / "libcuda.so.1"
    _compile(runtime, [SOURCES / "runtime.cpp", SOURCES / "streams.cpp"], *include, "-ldl")
    torch_libraries = sorted((site / "torch/lib").glob("*.so"))
    wanted = set().union(*(_symbols(library, "--undefined-only") for library in torch_libraries))
    wanted |= set(re.findall(r"CUDAAPI (cu[A-Z]\w+)", (site / "nvidia/cu13/include/cuda.h").read_text()))
    wanted = {name for name in wanted if STANDS_FOR.match(name)}
    own = folder / "own.so"
    _compile(own, [SOURCES / "libraries.cpp"])
    rest = wanted - _symbols(runtime, "--defined-only") - _symbols(own, "--defined-only")
    (folder / "rest.cpp").write_text("\n".join(_answers(rest)), encoding="utf-8")
    _compile(libraries, [SOURCES / "libraries.cpp", folder / "rest.cpp"], f"-L{folder}", "-lnull_cudart")
    driver.unlink(missing_ok=True)
    driver.symlink_to(libraries.name)
    return {
        "LD_PRELOAD": f"{runtime}:{libraries}",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH", "")))),
        "TORCH_CUDNN_V8_API_DISABLED": "1",
        "TRITON_LIBCUDA_PATH": str(folder),
    }


def _answers(names: Iterable[str]) -> Iterable[str]:
    yield 'extern "C" int null_launch_blas(void* handle);'
    for name in sorted(names):
        computes = COMPUTES.match(name) and not name.startswith("cublasLt")
        arguments, answer = ("void* handle, ...", "null_launch_blas(handle)") if computes else ("...", "0")
        yield f'extern "C" __attribute__((visibility("default"))) int {name}({arguments}) {{ return {answer}; }}'


def _symbols(library: Path, which: str) -> set[str]:
    listed = subprocess.run(["nm", "-D", which, str(library)], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in listed.splitlines() if line.strip()}


def _compile(target: Path, sources: Iterable[Path], *options: str) -> None:
    usual = ["c++", "-O1", "-shared", "-fPIC", "-std=c++17", "-w", "-o", str(target)]
    subprocess.run([*usual, *map(str, sources), *options, f"-Wl,-rpath,{target.parent}"], check=True)
