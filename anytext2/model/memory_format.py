"""The memory format of the convolutional networks: channels-last on a GPU.

cuDNN's kernels for half precision read and write channels-last tensors. For others, every call copies weights, input
and output. A convolution with such weights makes a channels-last map of whatever comes in, so that the weights decide.
On a CPU group norm is slower in this format, and nothing is changed (docs/LOG.md, "channels_last on a CPU").
"""

from __future__ import annotations

import torch
from torch import nn

from anytext2.model.anytext2 import AnyText2


def use_gpu_format(model: AnyText2) -> None:
    """Puts the frozen weights of UNet, WriteNet and VAE into channels-last format where the model is on a GPU.

    Call it after the last step that needs contiguous weights, such as DeepSpeed's broadcast.
    """
    if model.device.type == "cuda":
        for network in (model.model.diffusion_model, model.control_model, model.first_stage_model):
            to_channels_last(network)


def to_channels_last(network: nn.Module) -> None:
    """Changes the memory format of a network's frozen 4-d weights, in place; values and state dicts stay the same.

    Trained weights stay contiguous, because ZeRO-2 keeps them in one flat buffer.
    """
    for p in network.parameters():
        if p.dim() == 4 and not p.requires_grad:
            # `contiguous(memory_format=...)` would leave a kernel of one channel or one cell as it is, and a
            # convolution with it would give a contiguous map.
            p.data = torch.empty_like(p.data, memory_format=torch.channels_last).copy_(p.data)
