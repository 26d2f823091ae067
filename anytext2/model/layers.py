"""Building blocks of the UNet, the WriteNet and the VAE, and how they are initialised from scratch.

Attribute names inside the classes are those of the official checkpoint (latent-diffusion's vocabulary): LoRA targets,
merged checkpoints and other people's tools speak it.

Shape suffixes: B batch, C channels, h/w latent cells, T tokens, D width, N attention heads.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Root-mean-square preserving gain of a layer that follows SiLU without a normalisation in between:
# 1 / sqrt(E[silu(x)^2]) for x ~ N(0, 1).
SILU_GAIN = 1.68

M = TypeVar("M", bound=nn.Module)


# --- initialisation --------------------------------------------------------------------------------------------------


@runtime_checkable
class PostInitialise(Protocol):
    """A module that corrects its own parameters at the end of :func:`initialise`."""

    def post_initialise(self) -> None: ...


def with_init_scale(module: M, scale: float) -> M:
    """Mark a convolution or linear layer: :func:`initialise` multiplies its fan-in deviation by `scale` (0 = zeros)."""
    module.init_scale = scale  # type: ignore[assignment]
    return module


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialise every layer of `module` for training from scratch, in place.

    Weights are normal with deviation `init_scale / sqrt(fan_in)` (see :func:`with_init_scale`), biases zero, norms
    the identity. The last layer of a residual branch is marked small (VAE) or zero (UNet and WriteNet, as in
    latent-diffusion and ControlNet), so that a deep stack starts as the identity plus little.

    Args:
        module: anything built from this file's blocks. Convolutions, linear layers and norms are set, nothing else.
        generator: CPU source of the weights (torch's global one if None). The values do not depend on the device.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            deviation = float(getattr(layer, "init_scale", 1.0)) / math.sqrt(layer.weight[0].numel())
            values = torch.randn(layer.weight.shape, generator=generator) * deviation
            layer.weight.copy_(values)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
            layer.reset_parameters()
    for layer in module.modules():
        if isinstance(layer, PostInitialise):
            layer.post_initialise()


# --- attention -------------------------------------------------------------------------------------------------------


def attention(query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor, heads: int) -> Tensor:
    """Multi-head scaled dot-product attention over already projected tensors.

    Args:
        query_BTD: [B, T, D]; key_BTD, value_BTD: [B, S, D]; `heads` divides D, heads are consecutive slices of D.
    Returns:
        [B, T, D] in the query's dtype.
    """
    split = [x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query_BTD, key_BTD, value_BTD)]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def map_to_tokens(map_BChw: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h*w, C]; a view if the map is stored channels-last."""
    return map_BChw.flatten(2).transpose(1, 2)


def tokens_to_map(tokens_BTC: Tensor, h: int, w: int) -> Tensor:
    """[B, h*w, C] -> [B, C, h, w] stored channels-last (a view)."""
    return tokens_BTC.transpose(1, 2).unflatten(2, (h, w))


class CrossAttention(nn.Module):
    """Attention with projections; self-attention if no context is given."""

    def __init__(self, width: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_dim, width, bias=False)
        self.to_v = nn.Linear(context_dim, width, bias=False)
        # A list of one only because the official keys say `to_out.0`.
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x_BTD: Tensor, context_BSD: Tensor | None = None) -> Tensor:
        source = x_BTD if context_BSD is None else context_BSD
        return self.to_out(attention(self.to_q(x_BTD), self.to_k(source), self.to_v(source), self.heads))


class GEGLU(nn.Module):
    """Gated GELU (Shazeer 2020, equation 6): value * gelu(gate)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width_in, 2 * width_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back. (The official network keeps a dropout of rate 0 at index 1.)"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, AnyText2's extra pair of both ("attnx"), feed-forward; all residual.

    The extra pair shares the norms of the first pair and is applied after it, weighted by `attnx_scale`
    (AnyText2, Tuo et al. 2024, section 3.2).
    """

    def __init__(self, width: int, context_dim: int, heads: int, attnx: bool) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = CrossAttention(width, context_dim, heads)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.attn1x = CrossAttention(width, width, heads) if attnx else None
        self.attn2x = CrossAttention(width, context_dim, heads) if attnx else None

    def forward(self, x_BTD: Tensor, context_BSD: Tensor, attnx_scale: float) -> Tensor:
        x = x_BTD + self.attn1(self.norm1(x_BTD))
        x = x + self.attn2(self.norm2(x), context_BSD)
        if self.attn1x is not None and self.attn2x is not None and attnx_scale != 0:
            x = x + self.attn1x(self.norm1(x)) * attnx_scale
            x = x + self.attn2x(self.norm2(x), context_BSD) * attnx_scale
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the cells of a map, residual around all of it."""

    def __init__(self, width: int, context_dim: int, heads: int, norm_groups: int, attnx: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context_dim, heads, attnx)])
        self.proj_out = with_init_scale(nn.Conv2d(width, width, 1), 0.0)

    def forward(self, x_BChw: Tensor, context_BSD: Tensor, attnx_scale: float = 1.0) -> Tensor:
        """[B, C, h, w] and [B, S, D] -> [B, C, h, w]."""
        tokens = map_to_tokens(self.proj_in(self.norm(x_BChw)))
        for block in self.transformer_blocks:
            tokens = block(tokens, context_BSD, attnx_scale)
        return x_BChw + self.proj_out(tokens_to_map(tokens, *x_BChw.shape[2:]))


# --- convolutional blocks of the UNet --------------------------------------------------------------------------------


class ResBlock(nn.Module):
    """Two convolutions with the timestep embedding added between them, residual around both."""

    def __init__(self, width_in: int, width_out: int, embedding_width: int, norm_groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, width_in), nn.SiLU(), nn.Conv2d(width_in, width_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_width, width_out))
        # Index 2 is a dropout of rate 0 in the official network.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, width_out),
            nn.SiLU(),
            nn.Identity(),
            with_init_scale(nn.Conv2d(width_out, width_out, 3, padding=1), 0.0),
        )
        self.skip_connection = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x_BChw: Tensor, embedding_BD: Tensor) -> Tensor:
        branch = self.in_layers(x_BChw) + self.emb_layers(embedding_BD)[:, :, None, None]
        return self.skip_connection(x_BChw) + self.out_layers(branch)


class Downsample(nn.Module):
    """Halve a map by a strided convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double a map: nearest neighbour, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimestepEmbedSequential(nn.Sequential):
    """One numbered block of the UNet: each layer gets what it needs besides the map."""

    def forward(self, x: Tensor, embedding_BD: Tensor, context_BSD: Tensor, attnx_scale: float = 1.0) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding_BD)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context_BSD, attnx_scale)
            else:
                x = layer(x)
        return x


def timestep_embedding(t_B: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of a timestep (Vaswani et al. 2017, section 3.5), cosines first.

    Args:
        t_B: [B] integer or floating timesteps, 0..999.
        width: even number of features.
    Returns:
        [B, width] float32.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t_B.device) / half
    angles = t_B.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
