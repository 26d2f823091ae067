"""The VAE: the KL autoencoder of latent diffusion (Rombach et al. 2022, section 3.1).

`VAE.encode` and `VAE.decode` apply the scale factor: latents outside this file are always scaled.

Shape suffixes: B batch, C channels, H/W pixels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytext2.model.layers import attention, map_to_tokens, tokens_to_map, with_init_scale

LOGVAR_RANGE = (-30.0, 20.0)
"""Limits of the posterior's log variance."""
INITIAL_LOGVAR = -6.0
"""Log variance of a new encoder: with a variance of 1, the decoder would first learn to ignore the latent."""
RESIDUAL_INIT_SCALE = 0.1
NORM_EPS = 1e-6


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder; the defaults are Stable Diffusion's KL-f8.

    Level i has 1/2**i of the image's resolution and `ch * ch_mult[i]` channels. norm_groups: divides all widths.
    scale_factor: multiplies latents, so that their variance is about 1.
    """

    ch: int = 128
    ch_mult: list[int] = field(default_factory=lambda: [1, 2, 4, 4])
    num_res_blocks: int = 2
    z_channels: int = 4
    norm_groups: int = 32
    scale_factor: float = 0.18215
    mid_attention: bool = True

    def __post_init__(self) -> None:
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ValueError(f"vae.ch_mult = {list(self.ch_mult)}: give at least one level, each >= 1")
        if min(self.ch, self.num_res_blocks, self.z_channels, self.norm_groups) < 1:
            raise ValueError("vae: ch, num_res_blocks, z_channels and norm_groups must be >= 1")
        for width in self.widths:
            if width % self.norm_groups:
                raise ValueError(f"vae.norm_groups = {self.norm_groups} must divide every width, but not {width}")
        if not self.scale_factor > 0:
            raise ValueError(f"vae.scale_factor = {self.scale_factor}: must be > 0")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.ch * mult for mult in self.ch_mult]

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell, in each direction."""
        return 2 ** (len(self.ch_mult) - 1)


class VAEResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut where the width changes."""

    def __init__(self, width_in: int, width_out: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, width_in, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_groups, width_out, eps=NORM_EPS)
        self.conv2 = with_init_scale(nn.Conv2d(width_out, width_out, 3, padding=1), RESIDUAL_INIT_SCALE)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(F.silu(self.norm1(x)))
        branch = self.conv2(F.silu(self.norm2(branch)))
        return branch + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class VAEAttention(nn.Module):
    """Residual self-attention over the cells of a map, with one head."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, width, eps=NORM_EPS)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = with_init_scale(nn.Conv2d(width, width, 1), RESIDUAL_INIT_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (map_to_tokens(layer(normed)) for layer in (self.q, self.k, self.v))
        mixed = attention(query, key, value, heads=1)
        return x + self.proj_out(tokens_to_map(mixed, *x.shape[2:]))


class VAEDownsample(nn.Module):
    """Halves height and width. As in the official model, only bottom and right are padded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class VAEUpsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class VAEMiddle(nn.Module):
    """Two residual blocks with an optional attention between them, at the coarsest level."""

    def __init__(self, width: int, cfg: VAEConfig) -> None:
        super().__init__()
        self.block_1 = VAEResBlock(width, width, cfg.norm_groups)
        self.attn_1 = VAEAttention(width, cfg.norm_groups) if cfg.mid_attention else None
        self.block_2 = VAEResBlock(width, width, cfg.norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        if self.attn_1 is not None:
            x = self.attn_1(x)
        return self.block_2(x)


class VAELevel(nn.Module):
    """Residual blocks at one resolution, followed by downsampling, upsampling or (last level) nothing."""

    def __init__(self, width_in: int, width_out: int, n_blocks: int, norm_groups: int) -> None:
        super().__init__()
        widths_in = [width_in] + [width_out] * (n_blocks - 1)
        self.block = nn.ModuleList(VAEResBlock(w, width_out, norm_groups) for w in widths_in)
        self.downsample: VAEDownsample | None = None
        self.upsample: VAEUpsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class Encoder(nn.Module):
    """Image [B, 3, H, W] -> [B, 2 z, h, w], the input of `quant_conv`, which gives mean and log variance."""

    def __init__(self, cfg: VAEConfig) -> None:
        super().__init__()
        widths = cfg.widths
        self.conv_in = nn.Conv2d(3, cfg.ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = cfg.ch
        for i, width_out in enumerate(widths):
            level = VAELevel(width, width_out, cfg.num_res_blocks, cfg.norm_groups)
            if i < len(widths) - 1:
                level.downsample = VAEDownsample(width_out)
            self.down.append(level)
            width = width_out
        self.mid = VAEMiddle(width, cfg)
        self.norm_out = nn.GroupNorm(cfg.norm_groups, width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(width, 2 * cfg.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latent [B, z, h, w] -> image [B, 3, H, W]."""

    def __init__(self, cfg: VAEConfig) -> None:
        super().__init__()
        widths = cfg.widths
        width = widths[-1]
        self.conv_in = nn.Conv2d(cfg.z_channels, width, 3, padding=1)
        self.mid = VAEMiddle(width, cfg)
        levels: list[VAELevel] = []
        for i, width_out in reversed(list(enumerate(widths))):
            level = VAELevel(width, width_out, cfg.num_res_blocks + 1, cfg.norm_groups)
            if i > 0:
                level.upsample = VAEUpsample(width_out)
            levels.insert(0, level)  # official names count levels from the finest, like the encoder's
            width = width_out
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(cfg.norm_groups, width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):  # type: ignore[call-overload]
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    """The autoencoder. Images are float [B, 3, H, W] in [-1, 1]; H and W are multiples of `cfg.downsampling`."""

    def __init__(self, cfg: VAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * cfg.z_channels, 2 * cfg.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(cfg.z_channels, cfg.z_channels, 1)

    def encode_moments(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the unscaled latent.

        Returns:
            (mean, logvar), each [B, z, h, w]; logvar is clamped to [-30, 20].
        Raises:
            ValueError: the image's sides are not multiples of `cfg.downsampling`.
        """
        height, width = image_BCHW.shape[2:]
        step = self.cfg.downsampling
        if height % step or width % step:
            raise ValueError(f"image is {width}x{height} pixels: both sides must be multiples of {step}")
        mean, logvar = self.quant_conv(self.encoder(image_BCHW)).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def encode(self, image_BCHW: Tensor, noise_BChw: Tensor | None = None) -> Tensor:
        """Scaled latent [B, z, h, w]: the posterior's mode, or a sample with standard normal `noise_BChw`."""
        mean, logvar = self.encode_moments(image_BCHW)
        if noise_BChw is not None:
            mean = mean + torch.exp(0.5 * logvar) * noise_BChw
        return mean * self.cfg.scale_factor

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Image [B, 3, H, W] of a scaled latent [B, z, h, w], about in [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latent_BChw / self.cfg.scale_factor))

    def post_initialise(self) -> None:
        """Starts with a nearly deterministic posterior; called by `anytext2.model.layers.initialise`."""
        z = self.cfg.z_channels
        self.quant_conv.weight[z:].zero_()
        assert self.quant_conv.bias is not None
        self.quant_conv.bias[z:].fill_(INITIAL_LOGVAR)
