"""Building blocks of the UNet, the WriteNet and the VAE, and their initialisation from scratch.

Attribute names are those of the official checkpoint (latent-diffusion), because LoRA targets, merged checkpoints and
other tools use them.

Shape suffixes: B batch, C channels, h/w latent cells, T tokens, S context tokens, D width.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SILU_GAIN = 1.68
"""Initialisation gain after SiLU that preserves the root mean square: 1 / sqrt(E[silu(x)^2]) for x ~ N(0, 1)."""

M = TypeVar("M", bound=nn.Module)


# --- initialisation --------------------------------------------------------------------------------------------------


@runtime_checkable
class PostInitialise(Protocol):
    """A module that adjusts its own parameters at the end of :func:`initialise`."""

    def post_initialise(self) -> None:
        """Called once, without gradients, after all layers are initialised."""


def with_init_scale(module: M, scale: float) -> M:
    """Marks a convolution or linear layer: :func:`initialise` multiplies its standard deviation by `scale`."""
    module.init_scale = scale  # type: ignore[assignment]
    return module


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialises every layer of `module` for training from scratch, in place.

    Weights are normal with standard deviation `init_scale / sqrt(fan_in)` (see :func:`with_init_scale`), biases are
    zero, norms are the identity. The last layer of a residual branch has a small init_scale (VAE) or zero (UNet and
    WriteNet, as in latent-diffusion and ControlNet), so that a deep stack starts close to the identity.

    Args:
        module: built from this file's blocks. Only convolutions, linear layers and norms are initialised.
        generator: CPU generator; None for torch's global one. The values do not depend on the device.
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
    """Multi-head scaled dot-product attention of projected tensors.

    Args:
        query_BTD: [B, T, D]. key_BTD, value_BTD: [B, S, D].
        heads: a divisor of D; heads are consecutive slices of D.
    Returns:
        [B, T, D] in the query's dtype.
    """
    split = [x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query_BTD, key_BTD, value_BTD)]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def map_to_tokens(map_BChw: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h*w, C], contiguous if the map is in channels-last memory format."""
    return map_BChw.flatten(2).transpose(1, 2)


def tokens_to_map(tokens_BTC: Tensor, h: int, w: int) -> Tensor:
    """[B, h*w, C] -> [B, C, h, w], a view in channels-last memory format."""
    return tokens_BTC.transpose(1, 2).unflatten(2, (h, w))


KeyValue = tuple[Tensor, Tensor]
"""Keys and values of a cross-attention, [B, heads, S, d] each."""


class CrossAttention(nn.Module):
    """Multi-head attention with projections. If the context is the input itself, it is self-attention."""

    def __init__(self, width: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_dim, width, bias=False)
        self.to_v = nn.Linear(context_dim, width, bias=False)
        # A Sequential, because the official keys are `to_out.0.*`.
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x_ND: Tensor, context: Tensor | KeyValue, batch: int) -> Tensor:
        """Tokens [B*T, D] and context tokens [B*S, D] of a batch of B, or their `project` -> [B*T, D].

        Tokens of a batch are rows of one matrix, so that a linear layer is one product without changes of shape.
        """
        key, value = self.project(context, batch) if isinstance(context, Tensor) else context
        mixed = F.scaled_dot_product_attention(self._heads(self.to_q(x_ND), batch), key, value)
        return self.to_out(mixed.transpose(1, 2).reshape(len(x_ND), -1))

    def project(self, context_MD: Tensor, batch: int) -> KeyValue:
        """Keys and values of context tokens [B*S, D]."""
        return self._heads(self.to_k(context_MD), batch), self._heads(self.to_v(context_MD), batch)

    def _heads(self, tokens_ND: Tensor, batch: int) -> Tensor:
        return tokens_ND.view(batch, -1, self.heads, tokens_ND.shape[1] // self.heads).transpose(1, 2)


class GEGLU(nn.Module):
    """Gated GELU (Shazeer 2020, equation 6): value * gelu(gate)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width_in, 2 * width_out)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.proj(x)
        value, gate = joined.split(joined.shape[-1] // 2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back. Index 1 is a dropout of rate 0 in the official network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


BlockContext = tuple[KeyValue, ...]
"""Keys and values for each cross-attention of a transformer block."""


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, AnyText2's second pair of both ("attnx") and feed-forward; all residual.

    The second pair follows the first one, shares its norms and is weighted by `attnx_scale` (Tuo et al. 2024, section
    3.2).
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

    def forward(self, x_ND: Tensor, context: Tensor | BlockContext, batch: int, attnx_scale: float) -> Tensor:
        """Tokens [B*T, D] and context tokens [B*S, D] of a batch of B, or their `project_context` -> [B*T, D]."""
        first, second = (context, context) if isinstance(context, Tensor) else (context[0], context[-1])
        normed = self.norm1(x_ND)
        x = x_ND + self.attn1(normed, normed, batch)
        x = x + self.attn2(self.norm2(x), first, batch)
        if self.attn1x is not None and self.attn2x is not None and attnx_scale != 0:
            normed = self.norm1(x)
            x = torch.add(x, self.attn1x(normed, normed, batch), alpha=attnx_scale)
            x = torch.add(x, self.attn2x(self.norm2(x), second, batch), alpha=attnx_scale)
        return x + self.ff(self.norm3(x))

    def project_context(self, context_MD: Tensor, batch: int) -> BlockContext:
        """Keys and values of context tokens [B*S, D]."""
        return tuple(layer.project(context_MD, batch) for layer in (self.attn2, self.attn2x) if layer is not None)


class SpatialTransformer(nn.Module):
    """A transformer block over the cells of a map, with a residual connection around it."""

    def __init__(self, width: int, context_dim: int, heads: int, norm_groups: int, attnx: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context_dim, heads, attnx)])
        self.proj_out = with_init_scale(nn.Conv2d(width, width, 1), 0.0)

    def forward(self, x_BChw: Tensor, context: Tensor | tuple[BlockContext, ...], attnx_scale: float = 1.0) -> Tensor:
        """[B, C, h, w] and context tokens [B*S, D], or their `project_context` -> [B, C, h, w]."""
        batch, width, h, w = x_BChw.shape
        tokens = self.proj_in(self.norm(x_BChw)).permute(0, 2, 3, 1).reshape(-1, width)
        for number, block in enumerate(self.transformer_blocks):
            given = context if isinstance(context, Tensor) else context[number]
            tokens = block(tokens, given, batch, attnx_scale)
        return x_BChw + self.proj_out(tokens.view(batch, h, w, width).permute(0, 3, 1, 2))

    def project_context(self, context_MD: Tensor, batch: int) -> tuple[BlockContext, ...]:
        """`TransformerBlock.project_context` of each block, for context tokens [B*S, D]."""
        return tuple(block.project_context(context_MD, batch) for block in self.transformer_blocks)  # type: ignore[operator]


ProjectedContext = dict[nn.Module, tuple[BlockContext, ...]]
"""`SpatialTransformer.project_context` by transformer of a network. It is the same at all timesteps."""

Context = Tensor | ProjectedContext
"""Context tokens [B*S, D], or what the transformers make of them."""


# --- convolutional blocks of the UNet --------------------------------------------------------------------------------


class ResBlock(nn.Module):
    """Two convolutions with the timestep embedding added between them, and a residual connection around both.

    The caller applies the SiLU at index 0 of emb_layers, once for all blocks: see `activate_embedding`.
    """

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

    def forward(self, x_BChw: Tensor, activated_BD: Tensor) -> Tensor:
        branch = self.in_layers(x_BChw) + self.emb_layers[1](activated_BD).view(len(activated_BD), -1, 1, 1)
        return self.skip_connection(x_BChw) + self.out_layers(branch)


class Downsample(nn.Module):
    """Halves height and width by a strided convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimestepEmbedSequential(nn.Sequential):
    """A numbered block of the UNet: passes the embedding to ResBlocks and the context to SpatialTransformers."""

    def forward(self, x: Tensor, activated_BD: Tensor, context: Context, attnx_scale: float = 1.0) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, activated_BD)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context if isinstance(context, Tensor) else context[layer], attnx_scale)
            else:
                x = layer(x)
        return x


def activate_embedding(time_embed: nn.Module, t_B: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The timestep embedding [B, D] as ResBlocks take it: of `timestep_embedding` by the MLP, after their SiLU."""
    return F.silu(time_embed(timestep_embedding(t_B, width).to(dtype)))


def timestep_embedding(t_B: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal timestep embedding (Vaswani et al. 2017, section 3.5), cosines first.

    Args:
        t_B: [B] integer or floating timesteps, 0..999.
        width: number of features, even.
    Returns:
        [B, width] float32.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t_B.device) / half
    angles = t_B.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
