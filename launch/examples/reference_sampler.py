"""Samples a merged student in the reference program of AnyText2, whose own DDIM cannot: it begins at timestep 751.

`python launch/examples/reference_sampler.py merged.ckpt` prints what a file needs. This file needs torch alone, so that
a copy of it beside the reference's ms_wrapper.py works there. Its checkpoint is loaded as ever, and then:

    from reference_sampler import install
    install(model, "merged.ckpt")      # model: the AnyText2Model of ms_wrapper.py

From then on the program samples in the student's steps, whatever number of steps and guidance its page is set to.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

METADATA = "anytext2_distill"
SAMPLERS = ("phased", "trajectory", "consistency", "ddim")


def read_note(path: Path) -> dict[str, Any]:
    """What an exported file says of its student. Raises ValueError where it says nothing."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            text = json.loads(file.read(size)).get("__metadata__", {}).get(METADATA)
    else:
        text = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(METADATA)
    if text is None:
        raise ValueError(f"{path}: is no file of launch/export.py: it does not say how its student is sampled")
    note: dict[str, Any] = json.loads(text)
    if note["sampler"] not in SAMPLERS:
        raise ValueError(f"{path}: sampler {note['sampler']} is not one of {', '.join(SAMPLERS)}")
    return note


class StudentSampler:
    """Takes the place of the reference's DDIMSampler, whose `sample` it has.

    model: the reference's ControlLDM: `apply_model(x, t, conditions)` gives eps, `alphas_cumprod` is the schedule.
    note: from `read_note`.
    """

    def __init__(self, model: Any, note: dict[str, Any]) -> None:
        self.model, self.note = model, note
        self._noticed: set[str] = set()

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Any = None,
        eta: float = 0.0,
        x_T: Tensor | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        **others: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """The latent [B, C, h, w], and the latents after each step.

        S: number of steps, where the student has times for it. Guidance is not used: it is in the weights.
        """
        times = self.note["times"].get(str(S))
        if times is None:
            known = ", ".join(self.note["times"])
            self._say(f"{S} steps: the student has times for {known}; it is sampled in {self.note['steps']}")
            times = self.note["times"][str(self.note["steps"])]
        if unconditional_guidance_scale != 1.0:
            self._say(f"guidance {unconditional_guidance_scale:g} is not used: the teacher's is in the weights")
        table = torch.as_tensor(self.model.alphas_cumprod).double().cpu()
        device = self.model.device
        x = torch.randn(batch_size, *shape, device=device) if x_T is None else x_T.to(device)
        x, seen = x.float(), [x]
        dtype = next((p.dtype for p in self.model.parameters()), x.dtype)  # the demo's is half
        self.model.is_uncond = False  # the reference keeps two sets of the WriteNet's maps and chooses by this
        for step, t in enumerate(times):
            at = torch.full((batch_size,), t, device=device, dtype=torch.long)
            eps = self.model.apply_model(x.to(dtype), at, conditioning).float()
            x = self._step(x, eps, t, times[step + 1] if step + 1 < len(times) else None, table)
            seen.append(x)
        return x, {"x_inter": seen, "pred_x0": seen[1:]}

    def _step(self, x: Tensor, eps: Tensor, t: int, following: int | None, table: Tensor) -> Tensor:
        """From timestep t to the following one, or to the clean latent."""
        alpha, sigma = _roots(table, t)
        x0 = (x - sigma * eps) / alpha
        options, end = self.note["sampler_options"], following or 0
        if self.note["sampler"] == "consistency":
            return self._consistency(x, x0, t, following, table)
        gamma = options["gamma"] if self.note["sampler"] == "trajectory" and following is not None else 0.0
        past = int((1.0 - gamma) * end)
        to_alpha, to_sigma = _roots(table, past)
        x = to_alpha * x0 + to_sigma * eps
        if gamma > 0.0:
            kept = _roots(table, end)[0] / to_alpha
            x = kept * x + math.sqrt(1.0 - kept**2) * torch.randn_like(x)
        return x

    def _consistency(self, x: Tensor, x0: Tensor, t: int, following: int | None, table: Tensor) -> Tensor:
        options = self.note["sampler_options"]
        data, scaled = options["sigma_data"], options["timestep_scaling"] * t
        variance = scaled**2 + data**2
        x = data**2 / variance * x + scaled / math.sqrt(variance) * x0
        if following is None:
            return x
        alpha, sigma = _roots(table, following)
        return alpha * x + sigma * torch.randn_like(x)

    def _say(self, line: str) -> None:
        if line not in self._noticed:
            print(f"student: {line}", flush=True)
            self._noticed.add(line)


def _roots(table: Tensor, t: int) -> tuple[float, float]:
    """sqrt(abar) and sqrt(1 - abar) at a timestep."""
    return math.sqrt(float(table[t])), math.sqrt(1.0 - float(table[t]))


def install(program: Any, weights: str | Path) -> StudentSampler:
    """Puts a `StudentSampler` in the place of the program's DDIMSampler. Raises ValueError where it has none."""
    note = read_note(Path(weights))
    places = [name for name, value in vars(program).items() if type(value).__name__ == "DDIMSampler"]
    if not places:
        raise ValueError(f"{type(program).__name__} holds no DDIMSampler; give the AnyText2Model of ms_wrapper.py")
    sampler = StudentSampler(getattr(program, places[0]).model, note)
    for name in places:
        setattr(program, name, sampler)
    return sampler


def settings(note: dict[str, Any]) -> str:
    """What to set in the reference's demo."""
    rows = [f"  {steps} steps: {', '.join(map(str, times))}" for steps, times in note["times"].items()]
    return "\n".join(
        [
            f"sampler {note['sampler']}; steps {note['steps']}, CFG-Scale 1, eta 0, no negative prompt; timesteps:",
            *rows,
            "without this sampler the program's DDIM begins at 751 (of 4 steps), where the student was never trained,",
            "and its CFG-Scale of 7.5 guides once more what has the guidance in its weights",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print how an exported student is sampled in the reference program.")
    parser.add_argument("weights", type=Path, metavar="FILE", help="of launch/export.py --format merged")
    path = parser.parse_args(argv).weights
    try:
        print(settings(read_note(path)))
    except (ValueError, OSError, RuntimeError, struct.error) as error:
        print(f"error: {' '.join(str(error).split())}", flush=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
