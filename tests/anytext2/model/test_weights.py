from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from anytext2.model.weights import (
    IGNORED_KEY,
    load_partial_weights,
    load_weights,
    official_state_dict,
    read_state_dict,
    save_weights,
)
from tests.helpers.models.mini_model import mini_config, mini_model
from tests.helpers.models.parity import OFFICIAL_KEYS

LAYER = "cond_stage_model.transformer.text_model.encoder.layers.1."


@pytest.fixture(scope="module")
def model() -> AnyText2:
    return mini_model().requires_grad_(False)


@pytest.fixture()
def fresh() -> AnyText2:
    return build_model(mini_config()).double()


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def assert_same_weights(a: AnyText2, b: AnyText2) -> None:
    theirs = b.state_dict()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


# --- names -----------------------------------------------------------------------------------------------------------


def test_all_official_names_dtypes_and_shapes() -> None:
    ours = {
        name: (str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape)) or "scalar")
        for name, tensor in official_state_dict(build_model(load_model_config("sd15"), "meta")).items()
    }
    rows = [line.split("\t") for line in OFFICIAL_KEYS.read_text(encoding="utf-8").splitlines()]
    assert ours == {name: (dtype, shape) for name, dtype, shape in rows}
    assert len(ours) == 2047


def test_official_state_shares_memory_and_names_the_right_tensors(fresh: AnyText2) -> None:
    state = official_state_dict(fresh)
    block = fresh.cond_stage_model.tower.transformer.resblocks[1]
    for i, letter in enumerate("qkv"):
        state[f"{LAYER}self_attn.{letter}_proj.weight"].fill_(i + 1.0)
        state[f"{LAYER}self_attn.{letter}_proj.bias"].fill_(-i - 1.0)
    state[f"{LAYER}layer_norm2.weight"].fill_(4.0)
    state[f"{LAYER}mlp.fc2.bias"].fill_(5.0)
    assert block.attn.in_proj_weight[:, 0].tolist() == [1.0] * 16 + [2.0] * 16 + [3.0] * 16
    assert block.attn.in_proj_bias.tolist() == [-1.0] * 16 + [-2.0] * 16 + [-3.0] * 16
    assert (block.ln_2.weight == 4).all() and (block.mlp.c_proj.bias == 5).all()


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt", "w.pt"])
def test_round_trip(model: AnyText2, fresh: AnyText2, tmp_path: Path, name: str) -> None:
    save_weights(model, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert read_state_dict(tmp_path / name).keys() == official_state_dict(model).keys()
    load_weights(fresh, tmp_path / name)
    assert_same_weights(fresh, model)


@pytest.mark.heavy
def test_bare_old_format_and_position_ids(model: AnyText2, fresh: AnyText2, tmp_path: Path) -> None:
    state = copy_of(official_state_dict(model)) | {IGNORED_KEY: torch.arange(77)[None]}
    torch.save(state, tmp_path / "w.ckpt", _use_new_zipfile_serialization=False)
    load_weights(fresh, tmp_path / "w.ckpt")
    assert_same_weights(fresh, model)


def test_half_precision_file_keeps_schedule_and_statistics(model: AnyText2, tmp_path: Path) -> None:
    save_weights(model, tmp_path / "w.safetensors", torch.float16)
    state = load_file(tmp_path / "w.safetensors")
    assert state["model.diffusion_model.out.2.weight"].dtype == torch.float16
    assert state["betas"].dtype == torch.float32
    assert state["text_predictor.backbone.conv1._batch_norm.running_var"].dtype == torch.float64
    assert state["text_predictor.backbone.conv1._batch_norm.num_batches_tracked"].dtype == torch.int64


def test_load_model_without_drawing_weights(model: AnyText2, tmp_path: Path) -> None:
    save_weights(model, tmp_path / "w.safetensors")
    loaded = build_model(mini_config(), "meta", torch.float64).to_empty(device="cpu")
    load_weights(loaded, tmp_path / "w.safetensors")
    assert not loaded.training
    assert_same_weights(loaded, model)


def test_every_misfit_is_counted_and_named_and_nothing_is_loaded(
    model: AnyText2, fresh: AnyText2, tmp_path: Path
) -> None:
    state = copy_of(official_state_dict(model))
    for i in range(2):
        del state[f"control_model.zero_convs.{i}.0.weight"]
    state["model_ema.decay"] = torch.ones(())
    name = "model.diffusion_model.out.2.weight"
    state[name] = state[name][:1].clone()
    save_file(state, tmp_path / "w.safetensors")
    before = copy_of(fresh.state_dict())
    with pytest.raises(ValueError) as caught:
        load_weights(fresh, tmp_path / "w.safetensors")
    assert str(caught.value) == (
        f"{tmp_path}/w.safetensors: does not fit the model: 2 missing (control_model.zero_convs.0.0.weight, "
        "control_model.zero_convs.1.0.weight); 1 unexpected (model_ema.decay); 1 of another shape "
        f"({name} (file 1x8x3x3, model 3x8x3x3))"
    )
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_another_noise_schedule(model: AnyText2, fresh: AnyText2, tmp_path: Path) -> None:
    state = copy_of(official_state_dict(model))
    state["alphas_cumprod"] = state["alphas_cumprod"] * 0.9
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="table alphas_cumprod is not that of the config's schedule"):
        load_weights(fresh, tmp_path / "w.safetensors")


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
@pytest.mark.parametrize("kept", [0, 10, 20_000])
def test_truncated_file(model: AnyText2, fresh: AnyText2, tmp_path: Path, name: str, kept: int) -> None:
    save_weights(model, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{name}: not a readable weights file(, truncated|: an empty file)") as caught:
        load_weights(fresh, tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files(fresh: AnyText2, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.ckpt: no such weights file"):
        load_weights(fresh, tmp_path / "none.ckpt")
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match="w.ckpt: holds no state dict"):
        load_weights(fresh, tmp_path / "w.ckpt")
    torch.save({"code": Path("x")}, tmp_path / "w.pt")  # a pickled object that weights_only refuses
    with pytest.raises(ValueError, match="w.pt: refused: it holds pathlib"):
        load_weights(fresh, tmp_path / "w.pt")


def test_parts_over_one_another(fresh: AnyText2, tmp_path: Path) -> None:
    before = copy_of(fresh.state_dict())
    ours, official = "cond_stage_model.tower.ln_final.bias", f"{LAYER}self_attn.k_proj.bias"
    save_file({ours: torch.full((16,), 1.0), official: torch.full((16,), 2.0)}, tmp_path / "a.safetensors")
    save_file({ours: torch.full((16,), 3.0)}, tmp_path / "b.safetensors")
    load_partial_weights(fresh, [tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    after = fresh.state_dict()
    joined = "cond_stage_model.tower.transformer.resblocks.1.attn.in_proj_bias"
    assert (after[ours] == 3).all()
    assert (after[joined][16:32] == 2).all() and torch.equal(after[joined][:16], before[joined][:16])
    assert {name for name in after if not torch.equal(after[name], before[name])} == {ours, joined}
    save_file({"no.such.tensor": torch.ones(1)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"c\.safetensors: .* 1 unexpected \(no\.such\.tensor\)"):
        load_partial_weights(fresh, [tmp_path / "c.safetensors"])
