"""The noise prediction network: Stable Diffusion 1.5's UNet with AnyText2's second attention pair ("attnx").

The attnx layers are in the middle block and the decoder. The WriteNet uses the functions of this file for its encoder.

Shape suffixes: B batch, C channels, h/w latent cells, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anytext2.core.batch import Control
from anytext2.model.layers import (
    Context,
    Downsample,
    ProjectedContext,
    ResBlock,
    SpatialTransformer,
    TimestepEmbedSequential,
    Upsample,
    activate_embedding,
    with_init_scale,
)
from anytext2.model.recomputation import Recomputing


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the UNet; the defaults are official AnyText2 v2.0.

    Level i has 1/2**i of the latent's resolution and `int(model_channels * channel_mult[i])` channels.
    attention_resolutions: the downsampling factors (1, 2, 4, ...) of levels with transformers. attnx_levels: the
    decoder's levels whose transformers have attnx. attnx_middle: whether the middle block has it.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    num_res_blocks: int = 2
    channel_mult: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0, 4.0])
    attention_resolutions: list[int] = field(default_factory=lambda: [4, 2, 1])
    num_heads: int = 8
    context_dim: int = 768
    norm_groups: int = 32
    attnx_levels: list[int] = field(default_factory=lambda: [2, 1])
    attnx_middle: bool = True

    def __post_init__(self) -> None:
        positive = ("in_channels", "out_channels", "model_channels", "num_res_blocks", "num_heads", "context_dim")
        for name in (*positive, "norm_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"unet.{name} = {getattr(self, name)}: must be >= 1")
        if not self.channel_mult:
            raise ValueError("unet.channel_mult is empty: give one factor a level")
        if self.model_channels % 2:
            raise ValueError(f"unet.model_channels = {self.model_channels}: must be even (half sines, half cosines)")
        for width in self.widths:
            if width % self.norm_groups or width % self.num_heads:
                raise ValueError(
                    f"unet: norm_groups = {self.norm_groups} and num_heads = {self.num_heads} must divide every width, "
                    f"but not {width} (model_channels x channel_mult)"
                )
        for level in self.attnx_levels:
            if not 0 <= level < len(self.widths) or 2**level not in self.attention_resolutions:
                raise ValueError(
                    f"unet.attnx_levels: level {level} has no transformer; choose among the levels "
                    f"{[i for i in range(len(self.widths)) if 2**i in self.attention_resolutions]}"
                )

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [int(self.model_channels * mult) for mult in self.channel_mult]

    @property
    def embedding_width(self) -> int:
        """Width of the timestep embedding."""
        return 4 * self.model_channels

    @property
    def downsampling(self) -> int:
        """Downsampling factor from the latent to the middle block, in each direction."""
        return 2 ** (len(self.channel_mult) - 1)

    def has_attention(self, level: int) -> bool:
        """Whether a level has transformers."""
        return 2**level in self.attention_resolutions

    def transformer(self, level: int, attnx: bool = False) -> SpatialTransformer:
        """A transformer with the width of `level`."""
        return SpatialTransformer(self.widths[level], self.context_dim, self.num_heads, self.norm_groups, attnx)

    def res_block(self, width_in: int, width_out: int) -> ResBlock:
        """A residual block from `width_in` to `width_out` channels."""
        return ResBlock(width_in, width_out, self.embedding_width, self.norm_groups)


def make_time_embed(cfg: UNetConfig) -> nn.Sequential:
    """MLP from `timestep_embedding` [B, model_channels] to [B, 4 model_channels]."""
    width = cfg.embedding_width
    return nn.Sequential(nn.Linear(cfg.model_channels, width), nn.SiLU(), nn.Linear(width, width))


def make_input_blocks(cfg: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The encoder's blocks, and the number of output channels of each."""
    width = cfg.model_channels
    blocks = [TimestepEmbedSequential(nn.Conv2d(cfg.in_channels, width, 3, padding=1))]
    block_widths = [width]
    for level, width_out in enumerate(cfg.widths):
        if level > 0:
            blocks.append(TimestepEmbedSequential(Downsample(width)))
            block_widths.append(width)
        for _ in range(cfg.num_res_blocks):
            layers: list[nn.Module] = [cfg.res_block(width, width_out)]
            if cfg.has_attention(level):
                layers.append(cfg.transformer(level))
            blocks.append(TimestepEmbedSequential(*layers))
            block_widths.append(width_out)
            width = width_out
    return nn.ModuleList(blocks), block_widths


def make_middle_block(cfg: UNetConfig, attnx: bool) -> TimestepEmbedSequential:
    """The middle block. It always has a transformer, whatever `attention_resolutions` is."""
    last = len(cfg.widths) - 1
    width = cfg.widths[last]
    return TimestepEmbedSequential(
        cfg.res_block(width, width), cfg.transformer(last, attnx), cfg.res_block(width, width)
    )


def make_output_blocks(cfg: UNetConfig, skip_widths: Sequence[int]) -> nn.ModuleList:
    """The decoder's blocks. A block's input is the previous map concatenated with a skip map of the encoder.

    skip_widths: the second result of `make_input_blocks`.
    """
    remaining = list(skip_widths)
    blocks: list[TimestepEmbedSequential] = []
    width = cfg.widths[-1]
    for level, width_out in reversed(list(enumerate(cfg.widths))):
        for i in range(cfg.num_res_blocks + 1):
            layers: list[nn.Module] = [cfg.res_block(width + remaining.pop(), width_out)]
            width = width_out
            if cfg.has_attention(level):
                layers.append(cfg.transformer(level, attnx=level in cfg.attnx_levels))
            if level > 0 and i == cfg.num_res_blocks:
                layers.append(Upsample(width))
            blocks.append(TimestepEmbedSequential(*layers))
    assert not remaining
    return nn.ModuleList(blocks)


def run_block(block: nn.Module, recompute: bool, *inputs: Context | float) -> Tensor:
    """Calls a block. With `recompute`, its activations are recomputed in the backward pass instead of stored."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


class UNet(Recomputing):
    """Predicts the noise of a noisy latent.

    Args:
        cfg: the shape.
        activation_checkpointing: which activations are recomputed in the backward pass, see
            :mod:`anytext2.model.recomputation`.
    """

    def __init__(self, cfg: UNetConfig, activation_checkpointing: str = "none") -> None:
        super().__init__()
        self.cfg = cfg
        self.time_embed = make_time_embed(cfg)
        self.input_blocks, skip_widths = make_input_blocks(cfg)
        self.middle_block = make_middle_block(cfg, cfg.attnx_middle)
        self.output_blocks = make_output_blocks(cfg, skip_widths)
        self.out = nn.Sequential(
            nn.GroupNorm(cfg.norm_groups, cfg.widths[0]),
            nn.SiLU(),
            with_init_scale(nn.Conv2d(cfg.widths[0], cfg.out_channels, 3, padding=1), 0.0),
        )
        self.activation_checkpointing = activation_checkpointing

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computations outside autocast: that of the base weights."""
        return self.time_embed[0].weight.dtype  # type: ignore[union-attr, return-value]

    def forward(
        self,
        x_BChw: Tensor,
        t_B: Tensor,
        context: Context,
        control: Control | None = None,
        attnx_scale: float = 1.0,
    ) -> Tensor:
        """The predicted noise eps of noisy latents.

        Args:
            x_BChw: noisy scaled latent [B, in_channels, h, w]; h and w are multiples of `cfg.downsampling`.
            t_B: timesteps [B], integer or float, 0..999.
            context: of the image captions [B, T, context_dim], or its `project_context`.
            control: the WriteNet's control maps, which are added to the skip maps and to the middle block's output.
            attnx_scale: weight of the attnx layers; with 0 they are not computed.
        Returns:
            eps [B, out_channels, h, w] in the dtype of `x_BChw`. No argument is changed.
        Raises:
            ValueError: h or w is not a multiple of `cfg.downsampling`, or the number of control maps is wrong.
        """
        self._check(x_BChw, control)
        recompute = self.recomputes_blocks
        if isinstance(context, Tensor):
            context = context.to(self.dtype).flatten(0, 1)
        embedding = activate_embedding(self.time_embed, t_B, self.cfg.model_channels, self.dtype)
        hidden = x_BChw.to(self.dtype)
        skips: list[Tensor] = []
        for block in self.input_blocks:
            hidden = run_block(block, recompute, hidden, embedding, context)
            skips.append(hidden)
        hidden = run_block(self.middle_block, recompute, hidden, embedding, context, attnx_scale)
        if control is not None:
            hidden = hidden + control[-1].to(hidden.dtype)
            skips = [skip + added.to(skip.dtype) for skip, added in zip(skips, control[:-1], strict=True)]
        for block in self.output_blocks:
            joined = torch.cat([hidden, skips.pop()], dim=1)
            hidden = run_block(block, recompute, joined, embedding, context, attnx_scale)
        return self.out(hidden).to(x_BChw.dtype)

    def project_context(self, context_BTD: Tensor) -> ProjectedContext:
        """Keys and values of a context [B, T, context_dim], for any number of calls at other latents and timesteps."""
        context_MD, batch = context_BTD.to(self.dtype).flatten(0, 1), len(context_BTD)
        layers = chain(*self.input_blocks, self.middle_block, *self.output_blocks)  # type: ignore[arg-type]
        return {
            layer: layer.project_context(context_MD, batch) for layer in layers if isinstance(layer, SpatialTransformer)
        }

    def _check(self, x_BChw: Tensor, control: Control | None) -> None:
        height, width = x_BChw.shape[2:]
        step = self.cfg.downsampling
        if height % step or width % step:
            raise ValueError(f"latent is {width}x{height} cells: both sides must be multiples of {step}")
        expected = len(self.input_blocks) + 1
        if control is not None and len(control) != expected:
            raise ValueError(f"control has {len(control)} maps: the UNet takes {expected}")
