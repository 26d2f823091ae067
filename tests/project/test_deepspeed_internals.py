"""What is relied on of DeepSpeed beyond its documented interface: one test for each."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from distill.config.ds_config import read_ds_config
from distill.config.ds_keys import PASSED, RECIPE, REFUSED
from distill.runtime.gloo import gather_parts
from tests.helpers.models.two_layers import WIDTH, Net
from tests.helpers.paths import ROOT
from tests.helpers.processes.ranks import returned, run_ranks

FIRST_SCALE = 2.0


class Recording(dict[str, Any]):
    """A configuration that notes which keys it is asked for; copies note them in the same place."""

    def __init__(self, content: dict[str, Any], asked: set[str]) -> None:
        super().__init__(content)
        self.asked = asked

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self

    def __reduce__(self) -> Any:
        return Recording, (dict(self.items()), self.asked)


def keys_of_deepspeed() -> set[str]:
    """The keys that DeepSpeed reads of its configuration, with dots inside objects."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.config import _REMOVED_ZERO_CONFIG_KEYS, DeepSpeedConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    asked: set[str] = set()
    types: set[str] = set()
    DeepSpeedConfig(Recording({"train_batch_size": 1, "data_types": Recording({}, types)}, asked))
    sections = {
        "zero_optimization": DeepSpeedZeroConfig,
        "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config,
        "comms_logger": CommsLoggerConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
    }
    found = asked | {f"data_types.{key}" for key in types}
    found |= {f"zero_optimization.{key}" for key in _REMOVED_ZERO_CONFIG_KEYS}
    for section, model in sections.items():
        for name, field in model.model_fields.items():
            found |= {f"{section}.{name}", f"{section}.{field.alias or name}"}
    return found


def values(tensor: torch.Tensor) -> list[float]:
    return [float(value) for value in tensor.detach().float().flatten()]


def look_into_deepspeed() -> dict[str, Any]:
    """One rank: an fp16 engine with two groups; an update that overflows, then one that is done."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    from distill.optim.gradients import GradientSum
    from distill.training.engine import init_world

    asked: list[str] = []
    init_world(0, 1)
    get_accelerator().is_fp16_supported = lambda: bool(asked.append("is_fp16_supported")) or True
    net = Net()
    own = torch.optim.AdamW([{"params": list(part.parameters())} for part in (net.first, net.last)], lr=0.5)
    config = read_ds_config(ROOT / "ds_configs" / "zero2.json") | {"zero_allow_untested_optimizer": True}
    config |= {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2}
    config["fp16"] |= {"initial_scale_power": 1, "hysteresis": 1, "min_loss_scale": FIRST_SCALE}
    shown: list[list[list[int]]] = []
    step = own.step

    def watched(closure: Any = None) -> Any:
        shown.append([[p.numel() for p in group["params"]] for group in own.param_groups])
        return step(closure)

    own.step = watched  # type: ignore[method-assign]
    engine, zero, _, _ = deepspeed.initialize(
        model=net, optimizer=own, model_parameters=list(net.parameters()), config=config
    )
    facts: dict[str, Any] = {
        "keys": keys_of_deepspeed(),
        "asked": asked,
        "own_kept": zero.optimizer is own,
        "groups": len(zero.param_groups),
    }
    masters = zero.single_partition_of_fp32_groups
    facts["masters"] = [(master.dtype, master.dim(), master.numel()) for master in masters]
    facts["keyed_by_master"] = [
        len(group["params"]) == 1 and group["params"][0] is master
        for group, master in zip(own.param_groups, masters, strict=True)
    ]
    fragments = {name: p._hp_mapping for name, p in net.named_parameters()}  # type: ignore[attr-defined]
    facts["fragments"] = {
        name: (
            values(masters["last" in name].narrow(0, at.hp_fragment_address.start, at.hp_fragment_address.numel)),
            values(net.get_parameter(name).flatten()[at.lp_fragment_address.start :][: at.lp_fragment_address.numel]),
        )
        for name, at in fragments.items()
    }
    # State of one's own from before the first step, as a resume puts it there.
    for master in masters:
        own.state[master] = {
            "step": torch.tensor(7.0),
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.ones_like(master),
        }
    scaler = zero.loss_scaler
    counters = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis", "min_scale")
    backend = importlib.import_module("deepspeed.comm.comm").cdb
    facts["gathers"] = getattr(backend, "all_gather_function", None)
    facts["hooks"] = len(zero._grad_acc_hooks)
    GradientSum(engine, zero).attach()
    facts["attached"] = all(p.grad is not None and not p.grad.any() for p in net.parameters())
    facts["scaler"] = {n: getattr(scaler, n, "absent") for n in counters}
    facts["raises_at_first"] = scaler.raise_error_at_min_scale
    scaler.raise_error_at_min_scale = False

    facts["overflow"], facts["update"] = (make_update(engine, zero, factor) for factor in (float("inf"), 1.0))
    facts["shown"] = shown
    facts["untouched"] = facts["overflow"].pop("untouched") + facts["update"].pop("untouched")
    zero.param_groups[0]["lr"] = 0.25
    facts["lr"] = own.param_groups[0]["lr"]
    return facts


def make_update(engine: Any, zero: Any, factor: float) -> dict[str, Any]:
    """An update of two micro-batches whose loss is multiplied by `factor`, and what it left behind."""
    from distill.optim.gradients import GradientSum

    boundaries: list[bool] = []
    untouched: list[bool] = []
    gradients = GradientSum(engine, zero)
    gradients.attach()
    for _ in range(2):
        loss = engine(torch.ones(1, WIDTH, dtype=torch.float16)).float().square().mean()
        engine.backward(loss * factor)
        gradients.add()
        found = [p.grad is not None for p in engine.module.parameters()]
        untouched.append(zero.averaged_gradients.get(0) is None and all(found))
        if len(boundaries) == 1:
            gradients.share_out()
        boundaries.append(bool(engine.is_gradient_accumulation_boundary()))
        engine.step()
    norm = engine.get_global_grad_norm()
    return {
        "boundaries": boundaries,
        "untouched": untouched,
        "skipped": engine.skipped_steps,
        "norm": None if norm is None else float(norm),
        "scale": float(zero.loss_scale),
        "steps": [float(zero.optimizer.state[m]["step"]) for m in zero.single_partition_of_fp32_groups],
    }


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    found: dict[str, Any] = returned(run_ranks(1, look_into_deepspeed))[0]
    return found


def test_the_shared_memory_operator_is_looked_up_in_its_module() -> None:
    """`init_world` replaces `deepspeed.comm.torch.build_shm_op`. Otherwise the first start on a CPU compiles it."""
    backend = importlib.import_module("deepspeed.comm.torch")
    assert callable(backend.build_shm_op)
    assert "build_shm_op" in backend.TorchBackend.__init__.__code__.co_names


@pytest.mark.process
def test_every_key_of_deepspeed_s_configuration_is_classified(facts: dict[str, Any]) -> None:
    """A new release's key is passed on, the recipe's, or refused; left out of the tables it is called unknown."""
    known = {*PASSED, *RECIPE, *REFUSED}
    assert len(facts["keys"]) > 100 and {"train_batch_size", "compile", "fp16.hysteresis"} <= facts["keys"]
    sections = {path for path in facts["keys"] if any(other.startswith(path + ".") for other in known)}
    assert facts["keys"] - known - sections == set()


@pytest.mark.process
def test_the_accelerator_is_asked_whether_it_can_compute_in_fp16(facts: dict[str, Any]) -> None:
    """`Engine` answers for the CPU. Otherwise train.fp16_on_cpu, and every test of loss scaling, is refused."""
    assert "is_fp16_supported" in facts["asked"]


@pytest.mark.process
def test_the_optimizer_that_is_given_is_kept(facts: dict[str, Any]) -> None:
    """`zero_allow_untested_optimizer`: `_optimizer.optimizer` is ours, whose state `Shards` reads and writes."""
    assert facts["own_kept"] and facts["groups"] == 2


@pytest.mark.process
def test_each_group_has_one_flat_float32_master(facts: dict[str, Any]) -> None:
    """`Shards.masters` is `single_partition_of_fp32_groups`: a checkpoint's weights, the EMA, the sizes of moments."""
    assert [(dtype, dim) for dtype, dim, _ in facts["masters"]] == [(torch.float32, 1)] * 2
    assert all(numel >= WIDTH * (WIDTH + 1) for _, _, numel in facts["masters"])


@pytest.mark.process
def test_the_optimizer_s_state_is_keyed_by_the_master(facts: dict[str, Any]) -> None:
    """`Shards` finds the moments under `optimizer.state[master]`: each group of the optimizer holds just its master."""
    assert facts["keyed_by_master"] == [True, True]


@pytest.mark.process
def test_a_parameter_knows_where_it_lies_in_the_master(facts: dict[str, Any]) -> None:
    """`_hp_mapping` with `lp_fragment_address` and `hp_fragment_address`: shards become whole tensors by it."""
    assert set(facts["fragments"]) == {"first.weight", "first.bias", "last.weight", "last.bias"}
    for name, (in_master, in_parameter) in facts["fragments"].items():
        assert in_parameter == pytest.approx(in_master, rel=1e-3), name
        assert len(in_parameter) == (WIDTH * WIDTH if "weight" in name else WIDTH)


@pytest.mark.process
def test_state_from_before_the_first_step_is_taken_up(facts: dict[str, Any]) -> None:
    """A resume writes moments and step count before any step. Reset there, a resumed run would be another run."""
    assert facts["update"]["steps"] == [8.0, 8.0]


@pytest.mark.process
def test_the_optimizer_is_shown_one_group_at_a_time(facts: dict[str, Any]) -> None:
    """`skip_paused` tells by the group that it sees which adapter's turn it is; objective distribution_matching."""
    assert len(facts["shown"]) == 2 and all(len(groups) == 1 for groups in facts["shown"])


@pytest.mark.process
def test_the_groups_of_zero_are_those_of_the_optimizer(facts: dict[str, Any]) -> None:
    """`Engine.step` sets the learning rate in `_optimizer.param_groups`; a copy of them would leave it unchanged."""
    assert facts["lr"] == 0.25


@pytest.mark.process
def test_the_boundary_is_known_before_the_step(facts: dict[str, Any]) -> None:
    """`is_gradient_accumulation_boundary`, asked after backward: the trainer's updates end where DeepSpeed's do."""
    assert facts["update"]["boundaries"] == [False, True]


@pytest.mark.process
def test_a_skipped_update_is_counted_and_does_not_step(facts: dict[str, Any]) -> None:
    """`skipped_steps` grows by one: `StepResult.skipped`, which the step guard and the loss scale's log live on."""
    assert facts["overflow"]["skipped"] == 1 and facts["update"]["skipped"] == 1
    assert facts["overflow"]["steps"] == [7.0, 7.0]


@pytest.mark.process
def test_the_norm_of_the_gradient_is_told(facts: dict[str, Any]) -> None:
    """`get_global_grad_norm` after a step: unscaled and before clipping, as it is logged."""
    assert 0 < facts["update"]["norm"] < 100


@pytest.mark.process
def test_the_loss_scaler_s_counters_have_these_names(facts: dict[str, Any]) -> None:
    """`Engine.scaler_state` saves them, and `is_scale_at_floor` reads `min_scale`. A missing one is not continued."""
    assert facts["scaler"]["cur_scale"] == facts["scaler"]["min_scale"] == FIRST_SCALE
    assert "absent" not in facts["scaler"].values()


@pytest.mark.process
def test_the_loss_scaler_can_be_kept_from_raising_at_its_floor(facts: dict[str, Any]) -> None:
    """`raise_error_at_min_scale`: the trainer tries some more updates and ends such a run with words of its own."""
    assert facts["raises_at_first"] is True
    assert facts["overflow"]["scale"] == FIRST_SCALE  # and nothing was raised


@pytest.mark.process
def test_its_own_reduction_can_be_switched_off(facts: dict[str, Any]) -> None:
    """`_grad_acc_hooks` and `enable_backward_allreduce`: after a backward pass gradients are where they were put."""
    assert facts["hooks"] >= 4 and facts["attached"] and facts["untouched"] == [True] * 4


@pytest.mark.process
def test_the_step_takes_gradients_that_are_handed_to_it(facts: dict[str, Any]) -> None:
    """`averaged_gradients` of each group: their norm is told, they are clipped, applied, and looked through for inf."""
    assert facts["update"]["norm"] > 0 and facts["overflow"]["norm"] != facts["update"]["norm"]


@pytest.mark.process
def test_the_backend_s_gathering_is_an_attribute(facts: dict[str, Any]) -> None:
    """`init_world` puts a faster one for CPUs into `all_gather_function`, which the end of each step calls."""
    assert facts["gathers"] is gather_parts
