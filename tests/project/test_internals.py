"""What is relied on inside PEFT, PyTorch and MLflow: attributes and habits that they do not promise.

pyproject.toml holds their releases below an upper bound. Before one is raised, this file tells what would break;
test_deepspeed_internals.py does so for DeepSpeed.
"""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from distill.compilation.blocks import _own_code
from distill.tracking import mlflow_client
from tests.helpers.models.two_layers import WIDTH, Net

# --- PEFT ---


def adapted(**options: Any) -> PeftModel:
    """A net with two adapters, `student` and `fake`, of which the first is active; B is not zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["first", "last"], **options)
    model = get_peft_model(Net(), config, adapter_name="student")  # type: ignore[arg-type]
    model.add_adapter("fake", config)
    model.set_adapter("student")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    return model


def layers(model: PeftModel) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def test_an_adapted_layer_hands_out_the_layer_that_it_wraps() -> None:
    """`without_adapters` takes `get_base_layer`: the module of before, with its parameters."""
    model, net = adapted(), Net()
    found = [layer.get_base_layer() for layer in layers(model)]
    assert [type(layer) for layer in found] == [type(net.first), type(net.last)]
    parameters = {id(p) for p in model.parameters()}
    assert all(id(p) in parameters for layer in found for p in layer.parameters())


def test_a_layer_looks_at_its_active_adapter_in_every_forward() -> None:
    """`AdapterRoles.using` sets `_active_adapter`, which leaves alone what is trainable; `set_adapter` would not."""
    model, x = adapted(), torch.ones(1, WIDTH)
    student, trainable = model(x), [p.requires_grad for p in model.parameters()]
    for layer in layers(model):
        layer._active_adapter = ["fake"]
    assert not torch.equal(model(x), student)
    assert [p.requires_grad for p in model.parameters()] == trainable
    model.set_adapter("fake")
    assert [p.requires_grad for p in model.parameters()] != trainable


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_are_named_in_their_parameters_names(kind: str) -> None:
    """`adapter_parameters` and `portable_name` go by `base_model.model.` and `.lora_A.student.`: a file's keys."""
    names = [n for n, _ in adapted(use_dora=kind == "dora").named_parameters() if ".student." in n and "first" in n]
    expected = {f"base_model.model.first.{part}.student.weight" for part in ("lora_A", "lora_B")}
    dora = {"base_model.model.first.lora_magnitude_vector.student.weight"} if kind == "dora" else set()
    assert set(names) == expected | dora


def test_the_bare_model_and_the_configurations_can_be_had() -> None:
    """`AdapterRoles.model` and `lora_config`: the wrapped object itself, and one configuration for each adapter."""
    net = Net()
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["first"]), adapter_name="student")  # type: ignore[arg-type]
    assert model.get_base_model() is net
    assert list(adapted().peft_config) == ["student", "fake"]


def test_a_fresh_adapter_follows_the_seed_and_starts_as_the_teacher() -> None:
    """`add_student` seeds torch's generator: A is drawn from it, and B is zero."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        config = LoraConfig(r=2, target_modules=["first"])
        model = get_peft_model(Net(), config, adapter_name="student")  # type: ignore[arg-type]
        drawn.append({n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n})
    assert all(
        torch.equal(drawn[0][n], drawn[1][n]) and bool((drawn[0][n] == 0).all()) == ("lora_B" in n) for n in drawn[0]
    )


# --- PyTorch ---


def test_adamw_keeps_its_state_under_these_names() -> None:
    """`optimizers.AdamW.start` writes `step`, `exp_avg` and `exp_avg_sq` beforehand; checkpoints hold them."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert set(optimizer.state[weight]) == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer.state[weight]["step"].dtype == torch.float32 and not optimizer.defaults["fused"]


def test_a_step_of_the_object_s_own_is_called_in_place_of_the_class_s() -> None:
    """`skip_paused` puts a function on the optimizer. `step` in a class's slot would go past it."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    optimizer.step = lambda closure=None: "ours"  # type: ignore[assignment,method-assign]
    assert optimizer.step() == "ours"  # type: ignore[comparison-overlap]


def test_a_taken_port_is_named_in_the_error() -> None:
    """`init_world` tells DistNetworkError with EADDRINUSE from other failures, and says which port to choose."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(dist.DistNetworkError, match="EADDRINUSE"):
            dist.TCPStore("127.0.0.1", taken.getsockname()[1], is_master=True, wait_for_workers=False)


def test_each_code_object_has_compiled_programs_of_its_own() -> None:
    """`BlockPrograms` copies a function for each program; in one function the ninth would be refused or run eagerly."""
    compiled: list[int] = []

    def backend(module: Any, example: list[torch.Tensor]) -> Any:
        compiled.append(len(example[0]))
        return module.forward

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    for length in range(1, 11):
        program = torch.compile(_own_code(double), backend=backend, fullgraph=True, dynamic=False)
        assert torch.equal(program(torch.ones(length)), torch.full((length,), 2.0))
    assert compiled == list(range(1, 11))


def test_functorch_compiles_a_backward_pass_at_once_if_asked() -> None:
    """`BlockPrograms` asks, so that its errors come while the forward pass runs, where they are caught."""
    import torch._functorch.config as config

    assert config.force_non_lazy_backward_lowering is False


# --- MLflow ---


def test_the_limits_of_a_call_are_mlflow_s() -> None:
    """`mlflow_client` cuts batches, values and keys to them. Where MLflow has lower ones it refuses what we send."""
    from mlflow.utils import validation

    limits = mlflow_client._LIMITS
    assert limits["metrics"] <= validation.MAX_METRICS_PER_BATCH
    assert max(limits["params"], limits["tags"]) <= validation.MAX_PARAMS_TAGS_PER_BATCH
    assert mlflow_client._MAX_VALUE <= validation.MAX_PARAM_VAL_LENGTH
    assert mlflow_client._MAX_KEY <= validation.MAX_ENTITY_KEY_LENGTH


def test_the_tag_of_a_parent_run_has_this_name() -> None:
    """Evaluations hang below their run by it; otherwise they are runs of their own."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    assert mlflow_client._PARENT == MLFLOW_PARENT_RUN_ID


def test_mlflow_reads_how_long_to_wait_from_these_variables() -> None:
    """`configure` sets them; with MLflow's own values one call to a dead server blocks for four minutes."""
    from mlflow import environment_variables as known

    assert known.MLFLOW_HTTP_REQUEST_MAX_RETRIES.name == "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    assert known.MLFLOW_HTTP_REQUEST_TIMEOUT.name == "MLFLOW_HTTP_REQUEST_TIMEOUT"


def test_an_error_has_a_code_that_tells_a_refusal_from_an_outage() -> None:
    """`MlflowRun` decides by `error_code` whether sending again can help, and whether a run is gone."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

    assert MlflowException("no", INVALID_PARAMETER_VALUE).error_code in mlflow_client._REFUSED
    assert MlflowException("no", RESOURCE_DOES_NOT_EXIST).error_code == "RESOURCE_DOES_NOT_EXIST"
    assert MlflowException("no").error_code not in mlflow_client._REFUSED


def test_mlflow_s_monitors_collect_and_aggregate() -> None:
    """`SystemMonitors` calls three methods of MLflow's own collectors; without them there are no system metrics."""
    found = mlflow_client.SystemMonitors(Counter(), lambda line: pytest.fail(line)).sample()
    assert {"system/cpu_utilization_percentage", "system/disk_usage_megabytes"} <= set(found)
