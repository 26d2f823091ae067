"""The public recipe of LCM-LoRA distillation (Luo et al. 2023), written plainly on AnyText2's modules.

Training scripts of the field are written like this, and `make bench` measures ours beside it. Nothing of `distill` is
used but the list of adapted layers. What it does differently:

- teacher and student are two networks, and the student's LoRA layers are PEFT's own;
- the teacher's conditional and unconditional estimates are separate calls;
- the ControlNet (here the WriteNet) runs before each of the four UNet calls;
- the pictures are encoded by the VAE in each step.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from anytext2.core.batch import Batch, Conditions
from anytext2.model.anytext2 import AnyText2, DiffusionWrapper
from distill.adapters.targets import lora_targets

ADAPTER = "student"


@dataclass(frozen=True)
class Settings:
    """w_min, w_max: range of the guidance w in c + w (c - u). solver_steps: of the DDIM solver, from 1000 timesteps."""

    w_min: float = 5.0
    w_max: float = 15.0
    solver_steps: int = 50
    huber_c: float = 1e-3
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0
    rank: int = 64
    alpha: int = 64
    targets: str = "paper"


@dataclass(frozen=True)
class Randoms:
    """The random numbers of a step. posterior, noise: [B,C,h,w]. index: int64 [B] below solver_steps. guidance: [B]."""

    posterior: Tensor
    noise: Tensor
    index: Tensor
    guidance: Tensor


class DdimSolver:
    """DDIM steps between the times of a coarse grid; tables are float64, [solver_steps] each."""

    def __init__(self, alphas_cumprod: Tensor, steps: int) -> None:
        self.interval = len(alphas_cumprod) // steps
        self.timesteps = torch.arange(1, steps + 1, device=alphas_cumprod.device) * self.interval - 1
        # The step from the lowest time of the grid ends at time 0.
        self.previous = torch.cat([alphas_cumprod[:1], alphas_cumprod[self.timesteps[:-1]]])

    def step(self, x0: Tensor, eps: Tensor, index: Tensor) -> Tensor:
        """The latent one grid step below time `index`, from estimates [B,C,h,w] of the picture and the noise."""
        previous = _expanded(self.previous[index], x0)
        return previous.sqrt() * x0 + (1.0 - previous).sqrt() * eps


class Denoiser(nn.Module):
    """A UNet and its WriteNet. Module names are AnyText2's, so that the LoRA has the same layers."""

    def __init__(self, unet: nn.Module, write_net: nn.Module) -> None:
        super().__init__()
        self.model = DiffusionWrapper(unet)  # type: ignore[arg-type]
        self.control_model = write_net

    def forward(self, x: Tensor, t: Tensor, given: Conditions) -> Tensor:
        """eps [B,C,h,w], at least float32, with control maps of its own."""
        control = self.control_model(given.glyph, given.position, given.masked_latent, given.text_context)
        eps = self.model.diffusion_model(x.to(given.glyph.dtype), t, given.image_context, control)
        return eps.to(torch.promote_types(eps.dtype, torch.float32))


class LcmLoraRecipe(nn.Module):
    """The networks of the recipe and its loss.

    model: a plain AnyText2. Its VAE and encoders are used, and its UNet and WriteNet are the teacher. The student is a
    copy of both with LoRA layers.
    """

    def __init__(self, model: AnyText2, settings: Settings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or Settings()
        self.frozen = model.requires_grad_(False).eval()
        self.teacher = Denoiser(model.model.diffusion_model, model.control_model)
        student = Denoiser(copy.deepcopy(model.model.diffusion_model), copy.deepcopy(model.control_model))
        lora = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, target_modules=lora_targets(model, settings.targets)
        )
        self.student = get_peft_model(student, lora, adapter_name=ADAPTER, autocast_adapter_dtype=False)  # type: ignore[arg-type]
        self.student.train()
        with torch.no_grad():
            self.negative = model.negative_contexts("")
        schedule = model.cfg.schedule
        betas = torch.linspace(
            schedule.linear_start**0.5,
            schedule.linear_end**0.5,
            schedule.timesteps,
            dtype=torch.float64,
            device=model.device,
        ).square()
        self.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        self.solver = DdimSolver(self.alphas_cumprod, settings.solver_steps)

    def random(self, batch: Batch) -> Randoms:
        """Random numbers for a batch, drawn on its device by torch's global generator."""
        size, device, settings = batch.size, batch.image.device, self.settings
        shape = self.frozen.latent_shape(batch.image.shape[-2], batch.image.shape[-1])
        return Randoms(
            posterior=torch.randn(size, *shape, device=device),
            noise=torch.randn(size, *shape, device=device),
            index=torch.randint(0, settings.solver_steps, (size,), device=device),
            guidance=settings.w_min + (settings.w_max - settings.w_min) * torch.rand(size, device=device),
        )

    def loss(self, batch: Batch, randoms: Randoms) -> Tensor:
        """The mean pseudo-Huber distance of prediction and target. batch: normalised, on the model's device."""
        with torch.no_grad():
            latent = self.frozen.encode(batch.image, randoms.posterior)
            latent = latent.to(torch.promote_types(latent.dtype, torch.float32))
            given = self.frozen.encode_conditions(batch, self.frozen.encode(batch.masked_image))
        negative = given.with_contexts(self.negative)
        start = self.solver.timesteps[randoms.index]
        end = (start - self.solver.interval).clamp_min(0)
        alpha, sigma = self._alpha_sigma(start, latent)
        noisy = alpha * latent + sigma * randoms.noise.to(latent.dtype)

        eps = self.student(noisy, start, given)
        prediction = self._consistency(noisy, eps, start)
        with torch.no_grad():
            conditional = self.teacher(noisy, start, given)
            unconditional = self.teacher(noisy, start, negative)
            x0 = self._guided(self._x0(noisy, conditional, start), self._x0(noisy, unconditional, start), randoms)
            moved = self.solver.step(x0, self._guided(conditional, unconditional, randoms), randoms.index)
            target = self._consistency(moved, self.student(moved, end, given), end)
        c = self.settings.huber_c
        return ((prediction - target).square() + c * c).sqrt().sub(c).mean()

    def _consistency(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """c_skip x + c_out x0, which is x at t = 0."""
        scaled, deviation = t.double() * self.settings.timestep_scaling, self.settings.sigma_data
        variance = scaled.square() + deviation**2
        c_skip, c_out = deviation**2 / variance, scaled / variance.sqrt()
        return _expanded(c_skip, x) * x + _expanded(c_out, x) * self._x0(x, eps, t)

    @staticmethod
    def _guided(conditional: Tensor, unconditional: Tensor, randoms: Randoms) -> Tensor:
        return conditional + _expanded(randoms.guidance, conditional) * (conditional - unconditional)

    def _x0(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._alpha_sigma(t, x)
        return (x - sigma * eps) / alpha

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        bar = self.alphas_cumprod[t]
        return _expanded(bar.sqrt(), like), _expanded((1.0 - bar).sqrt(), like)


def _expanded(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B,1,1,1], in the dtype of `like`."""
    return values.to(like.dtype).reshape(-1, 1, 1, 1)
