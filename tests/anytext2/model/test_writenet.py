"""The control branch against a plain second implementation, and its contract."""

from __future__ import annotations

import pytest
import torch

from anytext2.model.layers import initialise
from anytext2.model.unet import UNet, UNetConfig
from anytext2.model.writenet import WriteNet, WriteNetConfig
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

UNET = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=8,
    num_res_blocks=1,
    channel_mult=[1.0, 1.5],
    attention_resolutions=[2],
    num_heads=2,
    context_dim=5,
    norm_groups=4,
    attnx_levels=[1],
)


def small(scale: int = 1) -> WriteNetConfig:
    return WriteNetConfig(glyph_scale=scale, glyph_widths=[4, 5, 6, 7], position_widths=[2, 3, 4, 5])


def make(scale: int = 1) -> WriteNet:
    net = randomised(WriteNet(UNET, small(scale)), deviation=0.3)
    assert isinstance(net, WriteNet)
    return net


def hints(scale: int = 1, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """Glyph page, positions, masked latent and text context for 16 x 32 pixels."""
    glyph = (normal(batch, 1, 16 * scale, 32 * scale, seed=1) > 0.5).double()
    position = (normal(batch, 1, 16, 32, seed=2) > 0).double() * 2
    return glyph, position, normal(batch, 3, 2, 4, seed=3), normal(batch, 6, 5, seed=4)


@pytest.mark.parametrize("scale", [1, 2])
def test_values_and_gradients_are_those_of_the_plain_code(scale: int) -> None:
    net = make(scale)
    given = [y.requires_grad_() for y in hints(scale)]

    def reference(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return plain_blocks.writenet(state, *given, heads=2, groups=4)  # type: ignore[arg-type]

    assert_parity(net, lambda: net(*given), reference, given, 1e-9)


def test_the_maps_fit_the_unet() -> None:
    unet, net = randomised(UNet(UNET)), make()
    maps = net(*hints())
    assert len(maps) == 5
    x, t, context = normal(2, 3, 2, 4, seed=5), torch.tensor([1, 2]), normal(2, 3, 5, seed=6)
    assert not torch.allclose(unet(x, t, context, maps), unet(x, t, context))


def test_every_hint_matters_and_samples_do_not_mix() -> None:
    net = make().requires_grad_(False)
    given = list(hints())
    base = net(*given)
    for i in range(4):
        changed = [y.clone() for y in given]
        changed[i][1] += 1.0
        for before, after in zip(base, net(*changed), strict=True):
            assert torch.equal(before[0], after[0])
            # The first map is taken before any attention has seen the caption.
            assert i == 3 or not torch.allclose(before[1], after[1])
        assert not torch.allclose(base[-1][1], net(*changed)[-1][1])


def test_a_fresh_branch_changes_nothing_but_learns_at_once() -> None:
    net = WriteNet(UNET, small())
    initialise(net, torch.Generator().manual_seed(0))
    maps = net(*(y.float() for y in hints()))
    assert all(torch.equal(y, torch.zeros_like(y)) for y in maps)
    sum((y * normal(*y.shape, dtype=y.dtype)).sum() for y in maps).backward()
    assert all(zero[0].weight.grad.abs().max() > 0 for zero in net.zero_convs)
    # Once the zero convolutions have moved, the hint is heard: nothing between is dead.
    with torch.no_grad():
        for zero in net.zero_convs:
            zero[0].weight.add_(0.1)
    sum(y.square().sum() for y in net(*(y.float() for y in hints()))).backward()
    assert net.fuse_block_za.weight.grad.abs().max() > 0
    assert net.glyph_block[0].weight.grad.abs().max() > 0
    # The encoders keep the size of what they see over seven layers: a line of ink is not forgotten.
    glyph = net.glyph_block(hints()[0].float())
    assert glyph.std().item() > 0.05


def test_recomputed_activations_give_the_same_gradients() -> None:
    net = make()
    given = [y.requires_grad_() for y in hints()]
    wanted = [*given, *net.parameters()]
    kept = gradients(net(*given), wanted)
    net.activation_checkpointing = "all"
    assert_same(gradients(net(*given), wanted), kept, 1e-12)


def test_integer_pages_and_half_weights_work() -> None:
    net = WriteNet(UNET, small()).bfloat16()
    glyph, position, latent, context = hints()
    maps = net(glyph.to(torch.uint8), position.to(torch.uint8), latent.float(), context.float())
    assert {y.dtype for y in maps} == {torch.bfloat16}


def test_the_default_size_has_the_official_keys_and_shapes() -> None:
    with torch.device("meta"):
        net = WriteNet(UNetConfig())
    assert shapes_of(net) == official_shapes("control_model.")


def test_hints_that_do_not_fit_are_refused() -> None:
    glyph, position, latent, context = hints()
    net = make()
    with pytest.raises(ValueError, match="glyph page is 64x32 pixels: a masked latent of 4x2 cells needs 32x16"):
        net(hints(2)[0], position, latent, context)
    with pytest.raises(ValueError, match="position page is 30x16"):
        net(glyph, position[..., :30], latent, context)
    with pytest.raises(ValueError, match="masked latent is 3x2 cells: both sides must be multiples of 2"):
        net(glyph, position, latent[..., :3], context)


def test_a_wrong_configuration_names_the_field() -> None:
    with pytest.raises(ValueError, match="glyph_scale = 3: must be 1 or 2"):
        WriteNetConfig(glyph_scale=3)
    with pytest.raises(ValueError, match="position_widths"):
        WriteNetConfig(position_widths=[8, 16])
