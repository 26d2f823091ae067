"""The WriteNet: the ControlNet branch (Zhang et al. 2023) for the glyphs and positions of the text.

Its inputs are the glyph page, the positions, the masked latent and the text caption's context, but neither the noisy
latent nor the timestep (AnyText2's `fast_control`). Its control maps are therefore the same at all timesteps: compute
them once per sample and pass them to every call of the UNet.

Shape suffixes: B batch, C channels, H/W pixels, h/w latent cells, T tokens, D width; g = glyph scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from anytext2.core.batch import Control
from anytext2.model.layers import SILU_GAIN, activate_embedding, with_init_scale
from anytext2.model.recomputation import Recomputing
from anytext2.model.unet import UNetConfig, make_input_blocks, make_middle_block, make_time_embed, run_block

HINT_DOWNSAMPLING = 8
"""Downsampling factor of the hint encoders, which must be the VAE's."""


@dataclass(frozen=True)
class WriteNetConfig:
    """Shape of the hint encoders; the defaults are official AnyText2 v2.0.

    glyph_scale: g = 1 or 2; glyph pages are g times as large as the image. glyph_widths, position_widths: channels of
    the hint encoders at 1, 1/2, 1/4 and 1/8 of the image's resolution. With glyph_scale 2 the glyph encoder has one
    more level before these, with half of the first width.
    """

    glyph_scale: int = 1
    glyph_widths: list[int] = field(default_factory=lambda: [16, 32, 96, 256])
    position_widths: list[int] = field(default_factory=lambda: [8, 16, 32, 64])

    def __post_init__(self) -> None:
        if self.glyph_scale not in (1, 2):
            raise ValueError(f"writenet.glyph_scale = {self.glyph_scale}: must be 1 or 2")
        for name in ("glyph_widths", "position_widths"):
            widths = getattr(self, name)
            if len(widths) != 4 or min(widths) < 2:
                raise ValueError(f"writenet.{name} = {list(widths)}: give four widths >= 2 (a factor 8 in all)")

    @property
    def glyph_levels(self) -> list[int]:
        """Channels of all levels of the glyph encoder, from the page's resolution on."""
        widths = list(self.glyph_widths)
        return widths if self.glyph_scale == 1 else [widths[0] // 2, *widths]


def make_hint_encoder(widths: list[int]) -> nn.Sequential:
    """Page [B, 1, H, W] -> [B, widths[-1], H / 2**(n-1), W / 2**(n-1)] for n widths: 3x3 convolutions with SiLU.

    Each level has a convolution at its width and a strided one to the next level.
    """
    convolutions = [nn.Conv2d(1, widths[0], 3, padding=1)]
    for width, next_width in pairwise(widths):
        convolutions.append(nn.Conv2d(width, width, 3, padding=1))
        convolutions.append(nn.Conv2d(width, next_width, 3, padding=1, stride=2))
    return nn.Sequential(*(layer for conv in convolutions for layer in (with_init_scale(conv, SILU_GAIN), nn.SiLU())))


def make_zero_convolution(width: int) -> nn.Sequential:
    """ControlNet's zero convolution: 1x1, initialised to zero, so that an untrained branch has no effect."""
    return nn.Sequential(with_init_scale(nn.Conv2d(width, width, 1), 0.0))


class WriteNet(Recomputing):
    """Computes the control maps of the UNet from the hints.

    Args:
        unet_cfg: the UNet's shape; the WriteNet has the same encoder and middle block, without attnx.
        cfg: shape of the hint encoders.
        activation_checkpointing: as in :class:`anytext2.model.unet.UNet`.
    """

    def __init__(
        self, unet_cfg: UNetConfig, cfg: WriteNetConfig | None = None, activation_checkpointing: str = "none"
    ) -> None:
        super().__init__()
        self.unet_cfg = unet_cfg
        self.cfg = cfg = cfg or WriteNetConfig()
        self.time_embed = make_time_embed(unet_cfg)
        self.input_blocks, widths = make_input_blocks(unet_cfg)
        self.zero_convs = nn.ModuleList(make_zero_convolution(width) for width in widths)
        self.glyph_block = make_hint_encoder(cfg.glyph_levels)
        self.position_block = make_hint_encoder(list(cfg.position_widths))
        hint_width = cfg.glyph_widths[-1] + cfg.position_widths[-1] + unet_cfg.in_channels
        # Not a zero convolution: the latent input is zero, so that with a zero hint all maps would be zero and the zero
        # convolutions would get no gradient.
        self.fuse_block_za = nn.Conv2d(hint_width, unet_cfg.model_channels, 3, padding=1)
        self.middle_block = make_middle_block(unet_cfg, attnx=False)
        self.middle_block_out = make_zero_convolution(unet_cfg.widths[-1])
        self.activation_checkpointing = activation_checkpointing

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computations outside autocast: that of the base weights."""
        return self.time_embed[0].weight.dtype  # type: ignore[union-attr, return-value]

    def fuse_hints(self, glyph_B1HW: Tensor, position_B1HW: Tensor, masked_latent_BChw: Tensor) -> Tensor:
        """The encoded hints [B, model_channels, h, w]; arguments and errors as in :meth:`forward`."""
        self._check(glyph_B1HW, position_B1HW, masked_latent_BChw)
        glyph = self.glyph_block(glyph_B1HW.to(self.dtype))
        position = self.position_block(position_B1HW.to(self.dtype))
        # Maps of different memory formats would be concatenated, and copied, as contiguous ones.
        is_last = glyph.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if is_last else torch.contiguous_format
        masked = masked_latent_BChw.to(glyph.dtype, memory_format=memory_format)
        return self.fuse_block_za(torch.cat([glyph, position, masked], dim=1))

    def forward(
        self,
        glyph_B1HW: Tensor,
        position_B1HW: Tensor,
        masked_latent_BChw: Tensor,
        text_context_BTD: Tensor,
        x_BChw: Tensor | None = None,
        t_B: Tensor | None = None,
    ) -> Control:
        """Control maps of a batch.

        Args:
            glyph_B1HW: glyph pages [B, 1, H g, W g] in {0, 1}.
            position_B1HW: sum of the lines' position masks [B, 1, H, W], not clipped.
            masked_latent_BChw: scaled latent of the masked image [B, in_channels, H / 8, W / 8].
            text_context_BTD: context of the text captions [B, T, context_dim].
            x_BChw, t_B: noisy latents and timesteps, for a ControlNet without fast_control. None means zeros, with
                which AnyText2's WriteNet is trained.
        Returns:
            One map for each input block of the UNet, in order, then the middle block's, in `self.dtype`.
        Raises:
            ValueError: the sizes of the hints do not match, or h or w is not a multiple of the UNet's downsampling.
        """
        recompute = self.recomputes_blocks
        hint = self.fuse_hints(glyph_B1HW, position_B1HW, masked_latent_BChw)
        context = text_context_BTD.to(self.dtype).flatten(0, 1)
        # fast_control: timestep 0 and a zero latent for every sample. One row is enough, because it broadcasts.
        time = torch.zeros(1, device=hint.device) if t_B is None else t_B
        embedding = activate_embedding(self.time_embed, time, self.unet_cfg.model_channels, self.dtype)
        latent = hint.new_zeros(1, self.unet_cfg.in_channels, *hint.shape[2:]) if x_BChw is None else x_BChw
        hidden = hint + self.input_blocks[0](latent.to(hint.dtype), embedding, context)
        maps = [self.zero_convs[0](hidden)]
        for block, zero_conv in zip(self.input_blocks[1:], self.zero_convs[1:], strict=True):  # type: ignore[arg-type, index]
            hidden = run_block(block, recompute, hidden, embedding, context)
            maps.append(zero_conv(hidden))
        hidden = run_block(self.middle_block, recompute, hidden, embedding, context)
        maps.append(self.middle_block_out(hidden))
        return tuple(maps)

    def _check(self, glyph_B1HW: Tensor, position_B1HW: Tensor, masked_latent_BChw: Tensor) -> None:
        height, width = masked_latent_BChw.shape[2:]
        step = self.unet_cfg.downsampling
        if height % step or width % step:
            raise ValueError(f"masked latent is {width}x{height} cells: both sides must be multiples of {step}")
        for name, page, scale in (("position", position_B1HW, 1), ("glyph", glyph_B1HW, self.cfg.glyph_scale)):
            expected = (height * HINT_DOWNSAMPLING * scale, width * HINT_DOWNSAMPLING * scale)
            if tuple(page.shape[2:]) != expected:
                raise ValueError(
                    f"{name} page is {page.shape[3]}x{page.shape[2]} pixels: "
                    f"a masked latent of {width}x{height} cells needs {expected[1]}x{expected[0]}"
                )
