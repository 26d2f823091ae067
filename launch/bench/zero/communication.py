"""A model of an update's communication, fed with measured bytes: ring collectives over links with latency.

`python launch/bench/zero/communication.py` prints the table of docs/PERFORMANCE.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LORA_VALUES = 26_828_800
"""Trained values of the official LoRA at rank 64: 504 tensors."""


@dataclass(frozen=True)
class Link:
    """The slowest connection of a ring. rate: bytes a second in one direction. latency: seconds of one hop."""

    name: str
    rate: float
    latency: float


LINKS = (
    Link("PCIe 4.0 x16 without P2P", 10e9, 20e-6),  # 32 GB/s by name; each byte crosses the host's memory twice
    Link("NVLink", 150e9, 5e-6),
    Link("25 Gb Ethernet", 2.8e9, 50e-6),  # TCP; 3.1 GB/s by name. All GPUs of a host share it.
)


@dataclass(frozen=True)
class Scheme:
    """What an update sends. reductions, gathers: bytes of the whole tensor of each reduce-scatter and all-gather.

    An all-reduce is one of both.
    """

    name: str
    reductions: tuple[int, ...]
    gathers: tuple[int, ...]


def schemes(values: int, micro_steps: int) -> tuple[Scheme, ...]:
    """Of fp16 weights with float32 gradients, as trained here; of DeepSpeed's own ZeRO-2, of DDP.

    DeepSpeed reduces to all ranks in 16 bits after each of the `micro_steps` of an update; DDP's weights are float32.
    """
    whole, half = 4 * values, 2 * values
    return (
        Scheme("this trainer", (whole,), (half,)),
        Scheme("DeepSpeed's ZeRO-2", (half,) * micro_steps, (half,) * (micro_steps + 1)),
        Scheme("DDP", (whole,), (whole,)),
    )


def sent_bytes(scheme: Scheme, ranks: int) -> float:
    """What one rank sends in an update: a ring passes on (n - 1) / n of the tensor, for either half."""
    return (sum(scheme.reductions) + sum(scheme.gathers)) * (ranks - 1) / ranks


def send_seconds(scheme: Scheme, ranks: int, link: Link) -> float:
    """Time of an update's collectives in one ring over all ranks, nothing of it hidden behind computation."""
    hops = (len(scheme.reductions) + len(scheme.gathers)) * (ranks - 1)
    return sent_bytes(scheme, ranks) / link.rate + hops * link.latency


@dataclass(frozen=True)
class Computation:
    """A GPU's time for samples. sample: seconds of one where the GPU is the limit; floor: of a micro-step at least,
    because Python dispatches its operations; micro_batch: samples of a micro-step at most."""

    sample: float
    floor: float
    micro_batch: int

    def update(self, samples: int) -> tuple[int, float]:
        """Micro-steps, and seconds, of so many samples on one GPU."""
        micro_steps = math.ceil(samples / self.micro_batch)
        return micro_steps, micro_steps * max(self.floor, self.sample * math.ceil(samples / micro_steps))


RTX4090 = Computation(sample=0.225, floor=0.6, micro_batch=4)
"""Estimated from an H200: 0.9 s for a micro-step of 4; the host's floor was measured there (2026-11-28)."""
WORLDS = (2, 3, 8, 16, 48, 64)


def main() -> int:
    print(f"{'GPUs':>4} {'samples':>7} {'compute s':>9}  " + "  ".join(f"{link.name:>32}" for link in LINKS))
    for ranks in WORLDS:
        samples = math.ceil(max(48, ranks) / ranks)
        micro_steps, compute = RTX4090.update(samples)
        for scheme in schemes(LORA_VALUES, micro_steps):
            sent = (send_seconds(scheme, ranks, link) for link in LINKS)
            cells = (f"{1000 * t:10.1f} ms {100 * t / compute:6.1f} % of it" for t in sent)
            print(f"{ranks:>4} {samples:>7} {compute:>9.2f}  " + "  ".join(f"{c:>32}" for c in cells), scheme.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
