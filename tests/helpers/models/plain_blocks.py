"""The networks written a second time, as plain functions of a state dict and nothing else.

Reference for the parity tests: no modules, no fused attention, no library norms. What a block is, is read off the
names of its weights; attention is a softmax of a matrix, a group norm is two means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def sub(state: State, prefix: str) -> dict[str, Tensor]:
    """The entries below `prefix`, without it."""
    return {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(prefix + ".")}


def children(state: State) -> list[str]:
    """Numeric children in order."""
    return sorted({key.split(".")[0] for key in state}, key=int)


def convolve(state: State, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
    kernel = state["weight"].shape[-1]
    return F.conv2d(x, state["weight"], state["bias"], stride, kernel // 2 if padding is None else padding)


def project(state: State, x: Tensor) -> Tensor:
    return x @ state["weight"].T + state.get("bias", 0.0)


def normalise(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()


def group_norm(state: State, x: Tensor, groups: int, eps: float) -> Tensor:
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    flat = normalise(grouped, (2, 3, 4), eps).reshape(x.shape)
    return flat * state["weight"][:, None, None] + state["bias"][:, None, None]


def layer_norm(state: State, x: Tensor) -> Tensor:
    return normalise(x, (-1,), 1e-5) * state["weight"] + state["bias"]


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    outputs = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        outputs.append(weights @ v)
    return torch.cat(outputs, -1)


def attend(state: State, x: Tensor, context: Tensor, heads: int) -> Tensor:
    query, key, value = (
        project(sub(state, f"to_{name}"), y) for name, y in zip("qkv", (x, context, context), strict=True)
    )
    return project(sub(state, "to_out.0"), softmax_attention(query, key, value, heads))


def transformer(state: State, x: Tensor, context: Tensor, heads: int, groups: int, scale: float) -> Tensor:
    height, width = x.shape[2:]
    inner = convolve(sub(state, "proj_in"), group_norm(sub(state, "norm"), x, groups, 1e-6))
    y = torch.stack([inner[:, :, i, j] for i in range(height) for j in range(width)], dim=1)
    block = sub(state, "transformer_blocks.0")
    norm1, norm2, norm3 = (sub(block, f"norm{i}") for i in (1, 2, 3))
    normed = layer_norm(norm1, y)
    y = y + attend(sub(block, "attn1"), normed, normed, heads)
    y = y + attend(sub(block, "attn2"), layer_norm(norm2, y), context, heads)
    if any(key.startswith("attn1x.") for key in block):
        normed = layer_norm(norm1, y)
        y = y + scale * attend(sub(block, "attn1x"), normed, normed, heads)
        y = y + scale * attend(sub(block, "attn2x"), layer_norm(norm2, y), context, heads)
    value, gate = project(sub(block, "ff.net.0.proj"), layer_norm(norm3, y)).chunk(2, -1)
    y = y + project(sub(block, "ff.net.2"), value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))))
    back = y.reshape(y.shape[0], height, width, -1).permute(0, 3, 1, 2)
    return x + convolve(sub(state, "proj_out"), back)


def res_block(state: State, x: Tensor, embedding: Tensor, groups: int) -> Tensor:
    y = convolve(sub(state, "in_layers.2"), silu(group_norm(sub(state, "in_layers.0"), x, groups, 1e-5)))
    y = y + project(sub(state, "emb_layers.1"), silu(embedding))[:, :, None, None]
    y = convolve(sub(state, "out_layers.3"), silu(group_norm(sub(state, "out_layers.0"), y, groups, 1e-5)))
    shortcut = sub(state, "skip_connection")
    return y + (convolve(shortcut, x) if shortcut else x)


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def stage(
    state: State, x: Tensor, embedding: Tensor, context: Tensor, heads: int, groups: int, scale: float = 1.0
) -> Tensor:
    for child in children(state):
        part = sub(state, child)
        if "in_layers.0.weight" in part:
            x = res_block(part, x, embedding, groups)
        elif "proj_in.weight" in part:
            x = transformer(part, x, context, heads, groups, scale)
        elif "op.weight" in part:
            x = convolve(sub(part, "op"), x, stride=2)
        elif "conv.weight" in part:
            x = convolve(sub(part, "conv"), double(x))
        else:
            x = convolve(part, x)
    return x


def embed_time(state: State, t: Tensor) -> Tensor:
    first = sub(state, "time_embed.0")
    width = first["weight"].shape[1]
    rows = []
    for value in t.tolist():
        angles = [value * 10000 ** (-i / (width // 2)) for i in range(width // 2)]
        rows.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    features = torch.tensor(rows, dtype=first["weight"].dtype)
    return project(sub(state, "time_embed.2"), silu(project(first, features)))


def unet(
    state: State,
    x: Tensor,
    t: Tensor,
    context: Tensor,
    control: tuple[Tensor, ...] | None,
    heads: int,
    groups: int,
    scale: float,
) -> Tensor:
    shared = (embed_time(state, t), context, heads, groups)
    skips = []
    for child in children(sub(state, "input_blocks")):
        x = stage(sub(state, f"input_blocks.{child}"), x, *shared)
        skips.append(x)
    x = stage(sub(state, "middle_block"), x, *shared, scale)
    if control is not None:
        x = x + control[-1]
        skips = [skip + extra for skip, extra in zip(skips, control[:-1], strict=True)]
    for child in children(sub(state, "output_blocks")):
        x = stage(sub(state, f"output_blocks.{child}"), torch.cat([x, skips.pop()], 1), *shared, scale)
    return convolve(sub(state, "out.2"), silu(group_norm(sub(state, "out.0"), x, groups, 1e-5)))


def hint_encoder(state: State, x: Tensor) -> Tensor:
    """Every second convolution but the first halves the map."""
    for i, child in enumerate(children(state)):
        x = silu(convolve(sub(state, child), x, stride=2 if i > 0 and i % 2 == 0 else 1))
    return x


def writenet(
    state: State, glyph: Tensor, position: Tensor, latent: Tensor, context: Tensor, heads: int, groups: int
) -> list[Tensor]:
    encoded = [hint_encoder(sub(state, "glyph_block"), glyph), hint_encoder(sub(state, "position_block"), position)]
    hint = convolve(sub(state, "fuse_block_za"), torch.cat([*encoded, latent], 1))
    shared = (embed_time(state, torch.zeros(len(glyph))), context, heads, groups)
    x, maps = torch.zeros_like(latent), []
    for child in children(sub(state, "input_blocks")):
        x = stage(sub(state, f"input_blocks.{child}"), x, *shared)
        if child == "0":
            x = x + hint
        maps.append(convolve(sub(state, f"zero_convs.{child}.0"), x))
    x = stage(sub(state, "middle_block"), x, *shared)
    return [*maps, convolve(sub(state, "middle_block_out.0"), x)]


def vae_res_block(state: State, x: Tensor, groups: int) -> Tensor:
    y = convolve(sub(state, "conv1"), silu(group_norm(sub(state, "norm1"), x, groups, 1e-6)))
    y = convolve(sub(state, "conv2"), silu(group_norm(sub(state, "norm2"), y, groups, 1e-6)))
    shortcut = sub(state, "nin_shortcut")
    return y + (convolve(shortcut, x) if shortcut else x)


def vae_middle(state: State, x: Tensor, groups: int) -> Tensor:
    x = vae_res_block(sub(state, "block_1"), x, groups)
    part = sub(state, "attn_1")
    if part:
        normed = group_norm(sub(part, "norm"), x, groups, 1e-6)
        query, key, value = (convolve(sub(part, name), normed).flatten(2).transpose(1, 2) for name in "qkv")
        mixed = softmax_attention(query, key, value, 1).transpose(1, 2).reshape(x.shape)
        x = x + convolve(sub(part, "proj_out"), mixed)
    return vae_res_block(sub(state, "block_2"), x, groups)


def vae_moments(state: State, image: Tensor, groups: int) -> Tensor:
    """Mean and log variance one after the other, not clamped."""
    encoder = sub(state, "encoder")
    x = convolve(sub(encoder, "conv_in"), image)
    for child in children(sub(encoder, "down")):
        level = sub(encoder, f"down.{child}")
        for i in children(sub(level, "block")):
            x = vae_res_block(sub(level, f"block.{i}"), x, groups)
        down = sub(level, "downsample.conv")
        if down:
            below = torch.cat([x, torch.zeros_like(x[:, :, :1])], 2)
            beside = torch.cat([below, torch.zeros_like(below[..., :1])], 3)
            x = convolve(down, beside, stride=2, padding=0)
    x = vae_middle(sub(encoder, "mid"), x, groups)
    x = convolve(sub(encoder, "conv_out"), silu(group_norm(sub(encoder, "norm_out"), x, groups, 1e-6)))
    return convolve(sub(state, "quant_conv"), x)


def vae_decode(state: State, latent: Tensor, groups: int) -> Tensor:
    """Image of an unscaled latent."""
    decoder = sub(state, "decoder")
    x = convolve(sub(decoder, "conv_in"), convolve(sub(state, "post_quant_conv"), latent))
    x = vae_middle(sub(decoder, "mid"), x, groups)
    for child in reversed(children(sub(decoder, "up"))):
        level = sub(decoder, f"up.{child}")
        for i in children(sub(level, "block")):
            x = vae_res_block(sub(level, f"block.{i}"), x, groups)
        up = sub(level, "upsample.conv")
        if up:
            x = convolve(up, double(x))
    return convolve(sub(decoder, "conv_out"), silu(group_norm(sub(decoder, "norm_out"), x, groups, 1e-6)))
