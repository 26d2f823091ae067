"""The noise predictor against a plain second implementation, and its contract."""

from __future__ import annotations

import pytest
import torch

from anytext2.model.layers import initialise
from anytext2.model.unet import UNet, UNetConfig
from tests.helpers.models import plain_blocks
from tests.helpers.models.parity import (
    assert_parity,
    assert_same,
    gradients,
    normal,
    official_shapes,
    randomised,
    shapes_of,
)


def small(**changes: object) -> UNetConfig:
    settings: dict[str, object] = {
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 8,
        "num_res_blocks": 1,
        "channel_mult": [1.0, 1.5, 2.0],
        "attention_resolutions": [2, 4],
        "num_heads": 2,
        "context_dim": 5,
        "norm_groups": 4,
        "attnx_levels": [1],
    }
    return UNetConfig(**{**settings, **changes})  # type: ignore[arg-type]


def make(cfg: UNetConfig) -> UNet:
    unet = randomised(UNet(cfg))
    assert isinstance(unet, UNet)
    return unet


def inputs_of(cfg: UNetConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """A noisy latent that is not square, and a context."""
    x = normal(2, cfg.in_channels, 2 * cfg.downsampling, cfg.downsampling, seed=1)
    return x.requires_grad_(), normal(2, 7, cfg.context_dim, seed=2).requires_grad_()


def control_of(unet: UNet, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Random maps of the shapes that the UNet takes."""
    shapes: list[torch.Size] = []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape))
        for block in (*unet.input_blocks, unet.middle_block)
    ]
    unet(x, torch.zeros(2), normal(2, 1, unet.cfg.context_dim))
    for hook in hooks:
        hook.remove()
    return tuple(normal(*shape, seed=10 + i).requires_grad_() for i, shape in enumerate(shapes))


@pytest.mark.parametrize(
    ("changes", "with_control", "scale"),
    [
        ({}, True, 1.0),
        ({"num_res_blocks": 2, "channel_mult": [1.0, 2.0], "attention_resolutions": [1, 2]}, False, 0.7),
        ({"attnx_levels": [2, 1], "attnx_middle": False, "num_heads": 4}, True, 0.0),
    ],
)
def test_values_and_gradients_are_those_of_the_plain_code(changes: dict, with_control: bool, scale: float) -> None:
    cfg = small(**changes)
    unet = make(cfg)
    if scale == 0:  # what is left out has no gradient
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_("attn1x" not in name and "attn2x" not in name)
    x, context = inputs_of(cfg)
    t = torch.tensor([3, 741])
    control = control_of(unet, x) if with_control else None
    trained = [p for p in unet.parameters() if p.requires_grad]
    wanted = [x, context, *(control or ()), *trained]
    ours = unet(x, t, context, control, scale)
    state = dict(unet.named_parameters())
    theirs = plain_blocks.unet(state, x, t, context, control, cfg.num_heads, cfg.norm_groups, scale)
    # The timestep's sinusoids are computed in float32 on purpose.
    assert_same([ours], [theirs], 1e-5)
    assert_same(gradients([ours], wanted), gradients([theirs], wanted), 1e-4)


def test_at_timestep_zero_the_agreement_is_exact() -> None:
    """No float32 sinusoid is in the way there, so the tolerance can be that of float64."""
    cfg = small()
    unet = make(cfg)
    x, context = inputs_of(cfg)
    control, t = control_of(unet, x), torch.zeros(2)

    def reference(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [plain_blocks.unet(state, x, t, context, control, cfg.num_heads, cfg.norm_groups, 1.0)]

    assert_parity(unet, lambda: [unet(x, t, context, control)], reference, [x, context, *control], 1e-9)


def test_without_extra_attention_scale_zero_changes_nothing_else() -> None:
    unet = make(small())
    plain = make(small(attnx_levels=[], attnx_middle=False))
    plain.load_state_dict({k: v for k, v in unet.state_dict().items() if "attn1x" not in k and "attn2x" not in k})
    x, context = inputs_of(small())
    t = torch.tensor([0.0, 500.0])
    assert torch.equal(unet(x, t, context, attnx_scale=0.0), plain(x, t, context))
    assert not torch.allclose(unet(x, t, context), plain(x, t, context))


def test_no_argument_is_changed_and_a_call_leaves_nothing_behind() -> None:
    unet = make(small()).requires_grad_(False)
    x, context = (y.detach() for y in inputs_of(small()))
    control = control_of(unet, x)
    arguments = (x, torch.tensor([5, 6]), context, *control)
    before = [y.clone() for y in arguments]
    first = unet(x, arguments[1], context, control)
    unet(2 * x, arguments[1], context)
    assert torch.equal(first, unet(x, arguments[1], context, control))
    assert all(torch.equal(a, b) for a, b in zip(before, arguments, strict=True))


@pytest.mark.heavy
def test_recomputed_activations_give_the_same_gradients() -> None:
    unet = make(small())
    x, context = inputs_of(small())
    t, control = torch.tensor([10, 20]), control_of(unet, x)
    wanted = [x, context, *control, *unet.parameters()]
    kept = gradients([unet(x, t, context, control)], wanted)
    unet.activation_checkpointing = True
    calls: list[int] = []
    unet.middle_block.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_same(gradients([unet(x, t, context, control)], wanted), kept, 1e-12)
    assert len(calls) == 2  # once forward, once again in the backward pass


def test_the_noise_comes_in_the_latents_dtype_whatever_the_weights_are() -> None:
    unet = UNet(small()).bfloat16()
    x, context = (y.detach().float() for y in inputs_of(small()))
    assert unet(x, torch.tensor([1, 2]), context).dtype == torch.float32


def test_a_fresh_unet_predicts_nothing_and_is_reproducible() -> None:
    first, second = UNet(small()), UNet(small())
    for unet in (first, second):
        initialise(unet, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    x, context = (y.detach().float() for y in inputs_of(small()))
    assert torch.equal(first(x, torch.tensor([1, 2]), context), torch.zeros_like(x))
    # Every stage passes its input on unchanged at first, so the map before the last convolution has a sound size.
    hidden: list[torch.Tensor] = []
    first.out[1].register_forward_hook(lambda _m, _i, out: hidden.append(out))
    first(x, torch.tensor([1, 2]), context)
    assert 0.3 < hidden[0].std().item() < 1.5


def test_the_default_size_has_the_official_keys_and_shapes() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    assert shapes_of(unet) == official_shapes("model.diffusion_model.")


def test_a_latent_or_a_control_that_does_not_fit_is_refused() -> None:
    unet = UNet(small())
    with pytest.raises(ValueError, match="latent is 6x8 cells: both sides must be multiples of 4"):
        unet(torch.zeros(1, 3, 8, 6), torch.zeros(1), torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match="control has 2 maps: the UNet takes 7"):
        unet(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, 1, 5), (torch.zeros(1), torch.zeros(1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_groups": 3}, "norm_groups = 3"),
        ({"num_heads": 3}, "num_heads = 3"),
        ({"model_channels": 7}, "model_channels = 7"),
        ({"channel_mult": []}, "channel_mult"),
        ({"attnx_levels": [0]}, r"level 0 has no transformer; choose among the levels \[1, 2\]"),
        ({"attnx_levels": [5]}, "level 5"),
        ({"context_dim": 0}, "context_dim = 0"),
    ],
)
def test_a_wrong_configuration_names_the_field(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_projected_context_gives_the_same_noise_at_any_time() -> None:
    cfg = small(attnx_levels=[2, 1])
    unet = make(cfg)
    x, context = inputs_of(cfg)
    with torch.inference_mode():
        projected = unet.project_context(context)
        for t in (torch.tensor([3, 900]), torch.tensor([500, 0])):
            torch.testing.assert_close(unet(x, t, projected), unet(x, t, context), rtol=1e-12, atol=1e-12)
