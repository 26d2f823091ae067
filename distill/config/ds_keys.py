"""Which keys of DeepSpeed's configuration a run takes: the recipe's, those that are passed on, and those refused.

Keys are written with dots, as in `zero_optimization.stage`. `tests/project/test_internals.py` checks that every key
that the installed DeepSpeed reads is in one of the three tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

AUTO = "auto"
"""A value that leaves the choice to the trainer, as in Hugging Face's files."""
COMMENTS = ("_", "//", "#", "$")
"""What the name of a comment begins with."""


@dataclass(frozen=True)
class Accepted:
    """The values of a key that is passed on, in words. read: returns the value for DeepSpeed, None for another one."""

    what: str
    read: Callable[[Any], Any]


def _number(least: float) -> Accepted:
    return Accepted(
        f"a number of at least {least:g}", lambda given: given if _is_number(given) and given >= least else None
    )


def _whole(least: int, most: int = 2**62) -> Accepted:
    def read(given: Any) -> Any:  # 5e8 is a float in JSON
        return int(given) if _is_number(given) and least <= given <= most and given == int(given) else None

    return Accepted(f"a whole number of at least {least}" + (f" and at most {most}" if most < 2**62 else ""), read)


def _even(given: Any) -> Any:
    return int(given) if _is_number(given) and given >= 2 and given % 2 == 0 else None


def _is_number(given: Any) -> bool:
    return isinstance(given, float) and math.isfinite(given) or isinstance(given, int) and not isinstance(given, bool)


_FLAG = Accepted("true or false", lambda given: given if isinstance(given, bool) else None)
_STAGE = Accepted(
    "2, the stage that this trainer has", lambda given: given if given == 2 and _is_number(given) else None
)
_DTYPE = Accepted('"fp32", "fp16" or "bf16"', lambda given: given if given in ("fp32", "fp16", "bf16") else None)
_EVEN = Accepted("an even number of at least 2", _even)  # DeepSpeed aligns to 2 values
_NAMES = Accepted(
    "a list of texts",
    lambda given: given if isinstance(given, list) and all(isinstance(n, str) for n in given) else None,
)

PASSED: dict[str, Accepted] = {
    "zero_optimization.stage": _STAGE,
    "zero_optimization.contiguous_gradients": _FLAG,
    "zero_optimization.overlap_comm": _FLAG,
    "zero_optimization.reduce_scatter": _FLAG,
    "zero_optimization.reduce_bucket_size": _whole(1),
    "zero_optimization.use_multi_rank_bucket_allreduce": _FLAG,
    "zero_optimization.allgather_partitions": _FLAG,
    "zero_optimization.allgather_bucket_size": _EVEN,
    "zero_optimization.ignore_unused_parameters": _FLAG,
    "fp16.enabled": _FLAG,
    "fp16.loss_scale": _number(0),
    "fp16.initial_scale_power": _whole(0, 64),
    "fp16.loss_scale_window": _whole(1),
    "fp16.hysteresis": _whole(1),
    "fp16.consecutive_hysteresis": _FLAG,
    "fp16.min_loss_scale": _whole(1),
    "bf16.enabled": _FLAG,
    "bf16.immediate_grad_update": _FLAG,
    "data_types.grad_accum_dtype": _DTYPE,
    "communication_data_type": _DTYPE,
    "comms_logger.enabled": _FLAG,
    "comms_logger.verbose": _FLAG,
    "comms_logger.debug": _FLAG,
    "comms_logger.prof_all": _FLAG,
    "comms_logger.prof_ops": _NAMES,
    "timers.throughput.enabled": _FLAG,
    "timers.throughput.synchronized": _FLAG,
    "wall_clock_breakdown": _FLAG,
    "memory_breakdown": _FLAG,
    "dump_state": _FLAG,
}
"""Keys that DeepSpeed gets as they are."""

RECIPE: dict[str, str] = {
    "train_batch_size": "train.effective_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.effective_batch and train.micro_batch",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.optimizer",
    "optimizer.params.lr": "train.learning_rate",
    "optimizer.params.betas": "train.betas",
    "optimizer.params.weight_decay": "train.weight_decay",
    "optimizer.params.max_grad_norm": "train.max_grad_norm",
    "scheduler": "train.schedule",
    "scheduler.params.warmup_num_steps": "train.warmup_steps",
    "scheduler.params.warmup_max_lr": "train.learning_rate",
    "scheduler.params.total_num_steps": "train.max_steps",
    "scheduler.params.cos_min_ratio": "train.min_lr_ratio",
    "steps_per_print": "log.every",
}
"""Keys that a recipe sets, and by which of its keys. A key stands for everything in its object."""


@dataclass(frozen=True)
class Refused:
    """A key that no run takes. why: the reason. unset: values that change nothing, besides those of `_is_off`."""

    why: str
    unset: tuple[Any, ...] = ()


_STAGE_3 = Refused("it belongs to stage 3", (1,))
_OFFLOAD = Refused("the optimizer state of a LoRA is small and stays on the GPU")
_NO_USE = Refused("this trainer has no use for it")
_PARALLEL = Refused("this trainer splits the data only", (1,))
_MLFLOW = Refused("metrics go to MLflow, which tracking.uri in the recipe names")
_OWN_CHECKPOINTS = Refused("checkpoints are this trainer's own, see `checkpoint` in the recipe", (True,))
_PRECISION = Refused("fp16.enabled and bf16.enabled set the precision")

STAGE_3_KEYS = (
    "offload_param", "cpu_offload_param", "sub_group_size", "stage3_prefetch_bucket_size", "prefetch_bucket_size",
    "stage3_param_persistence_threshold", "param_persistence_threshold", "stage3_model_persistence_threshold",
    "model_persistence_threshold", "stage3_max_live_parameters", "max_live_parameters", "stage3_max_reuse_distance",
    "max_reuse_distance", "stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save",
    "stage3_gather_fp16_weights_on_model_save", "stage3_module_granularity_threshold", "module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params", "use_all_reduce_for_fetch_params", "stage3_allgather_sequential",
    "allgather_sequential", "memory_efficient_linear", "override_module_apply", "log_trace_cache_warnings",
    "enable_sanity_checks", "save_muon_momentum_buffer_in_memory", "leaf_module", "pipeline_loading_checkpoint",
    "mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param", "zero_hpz_partition_size",
    "zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients",
)  # fmt: skip
PARALLEL_KEYS = (
    "pipeline", "tensor_parallel", "autotp_size", "expert_parallel", "sequence_parallel_size", "data_parallel_size",
    "seq_parallel_communication_data_type", "use_data_before_expert_parallelism",
)  # fmt: skip
UNUSED_KEYS = (
    "compression_training", "data_efficiency", "curriculum_learning", "elasticity", "autotuning", "sparse_attention",
    "sparse_gradients", "hybrid_engine", "compile", "weight_quantization", "quantize_training", "eigenvalue",
    "progressive_layer_drop", "graph_harvesting", "nebula", "aio", "datastates_ckpt", "vocabulary_size",
    "disable_python_gc", "log_level",
)  # fmt: skip

REFUSED: dict[str, Refused] = {
    "zero_optimization.offload_optimizer": _OFFLOAD,
    "zero_optimization.cpu_offload": _OFFLOAD,
    "zero_optimization.cpu_offload_use_pin_memory": Refused("nothing is offloaded", (True,)),
    "zero_optimization.zenflow": _OFFLOAD,
    "zero_optimization.compute_grad_norm": Refused("the gradient's norm is needed", (True,)),
    "zero_optimization.load_from_fp32_weights": _OWN_CHECKPOINTS,
    "zero_optimization.elastic_checkpoint": _OWN_CHECKPOINTS,
    "zero_optimization.legacy_stage1": Refused("it belongs to stage 1"),
    # Each rank's shard is then in another order than that in which checkpoints gather and load it.
    "zero_optimization.round_robin_gradients": Refused("checkpoints need the parameters in their own order"),
    "zero_optimization.parameter_alignment": Refused("checkpoints need the parameters one behind the other"),
    **{f"zero_optimization.{key}": _STAGE_3 for key in STAGE_3_KEYS},
    "fp16.auto_cast": Refused("inputs have the right type already"),
    "fp16.fp16_master_weights_and_grads": Refused("master weights are float32"),
    "bf16.bf16_master_weights_and_grads": Refused("master weights are float32"),
    "bf16.bf16_optimizer_states": Refused("optimizer states are float32"),
    "bf16.check_grad_overflow": Refused("updates with infinite gradients are skipped", (True,)),
    "bfloat16": Refused("its name is bf16"),
    "torch_autocast": _PRECISION,
    "amp": _PRECISION,
    "data_types.param_dtype": _PRECISION,
    "data_types.buffer_dtype": _PRECISION,
    "data_types.keep_in_fp32_modules": _PRECISION,
    "prescale_gradients": Refused("stage 2 cannot divide gradients before their sum"),
    "gradient_predivide_factor": Refused("stage 2 cannot divide gradients before their sum", (1,)),
    "gradient_allreduce_op": Refused("gradients are averaged", ("mean",)),
    "managed_gradient_accumulation": Refused("DeepSpeed has to accumulate", (True,)),
    "disable_allgather": Refused("stage 2 gathers the weights"),
    "zero_allow_untested_optimizer": Refused("the trainer brings its own optimizer", (True,)),
    "zero_force_ds_cpu_optimizer": Refused("nothing is offloaded", (True,)),
    "dataloader_drop_last": Refused("the trainer has its own data loader", (True,)),
    "activation_checkpointing": Refused("model.activation_checkpointing in the recipe does it"),
    "checkpoint": _OWN_CHECKPOINTS,
    "flops_profiler": Refused("it would count teacher and student together"),
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet"), _MLFLOW),
    **dict.fromkeys(PARALLEL_KEYS, _PARALLEL),
    **dict.fromkeys(UNUSED_KEYS, _NO_USE),
}
"""Keys that are refused unless they are switched off. A key stands for everything in its object."""

SECTIONS = frozenset(path[:dot] for path in (*PASSED, *REFUSED) for dot, char in enumerate(path) if char == ".")


@dataclass
class Sorted:
    """A configuration's keys. passed: the configuration for DeepSpeed. auto: keys left to DeepSpeed's defaults.

    faults: what is wrong, each with key, value and what to do.
    """

    passed: dict[str, Any] = field(default_factory=dict)
    auto: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def sort_keys(config: Mapping[str, Any]) -> Sorted:
    """Sorts the keys of a user's configuration by the tables above. Comments and what is switched off are left out."""
    found = Sorted()
    found.passed = _sort_section("", config, found)
    _choose_precision(found)
    stage_fault = any(fault.startswith(("zero_optimization=", "zero_optimization.stage=")) for fault in found.faults)
    if "stage" not in found.passed.get("zero_optimization", {}) and not stage_fault:
        found.faults.append("zero_optimization.stage is missing: this trainer shards with stage 2")
    if all(found.passed.get(name, {}).get("enabled") for name in ("fp16", "bf16")):
        found.faults.append("fp16.enabled=true and bf16.enabled=true: switch one of them off")
    return found


def _choose_precision(found: Sorted) -> None:
    """fp16 where `enabled` is "auto", as in the shipped configuration; bf16 where only its `enabled` is."""
    for name, other in (("fp16", "bf16"), ("bf16", "fp16")):
        if f"{name}.enabled" in found.auto:
            found.auto.remove(f"{name}.enabled")
            found.passed[name]["enabled"] = not found.passed.get(other, {}).get("enabled", False)


def _sort_section(prefix: str, section: Mapping[str, Any], found: Sorted) -> dict[str, Any]:
    passed: dict[str, Any] = {}
    for key, value in section.items():
        path = prefix + key
        if key.startswith(COMMENTS):
            continue
        if path in RECIPE:
            found.faults += [
                f"{_shown(leaf, v)}: the recipe's {_owner(leaf)} sets it" for leaf, v in _values(path, value)
            ]
        elif path in REFUSED:
            if not _is_off(value, REFUSED[path].unset):
                found.faults.append(f"{_shown(path, value)} is not supported: {REFUSED[path].why}")
        elif path in SECTIONS and isinstance(value, Mapping):
            passed[key] = _sort_section(path + ".", value, found)
        elif path not in SECTIONS and path not in PASSED:
            found.faults.append(f"{_shown(path, value)}: DeepSpeed has no such key{_advice(path)}")
        elif value is None or value == AUTO:
            found.auto.append(path)
        elif path in PASSED and (read := PASSED[path].read(value)) is not None:
            passed[key] = read
        else:
            what = PASSED[path].what if path in PASSED else "an object"
            found.faults.append(f"{_shown(path, value)} must be {what}")
    return passed


def _values(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values in a key of the recipe's that are not left to the recipe."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not key.startswith(COMMENTS):
                yield from _values(f"{path}.{key}", inner)
    elif value is not None and value != AUTO:
        yield path, value


def _owner(path: str) -> str:
    """The recipe's key in place of `path`, or of the nearest object around it that the recipe sets."""
    while path not in RECIPE:
        path = path.rpartition(".")[0]
    return RECIPE[path]


def _is_off(value: Any, unset: Collection[Any]) -> bool:
    """Whether a value of a refused key changes nothing: off, empty, 'auto', or an object that is switched off."""
    if isinstance(value, Mapping):
        switches = [value[name] for name in ("enabled", "device") if name in value]
        return not value or (bool(switches) and all(_is_off(switch, ()) for switch in switches))
    off = (None, False, AUTO, "none", "", [], *unset)
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in off)  # 1 == True


def _shown(path: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"{json.dumps(path, ensure_ascii=False)[1:-1]}={text if len(text) <= 50 else text[:47] + '...'}"


def _advice(path: str) -> str:
    """The known key that was probably meant: of that name in another object, else of a similar name."""
    section, _, name = path.rpartition(".")
    leaves: dict[str, str] = {}
    for known in sorted((*PASSED, *RECIPE, *SECTIONS), key=lambda known: known.rpartition(".")[0] != section):
        leaves.setdefault(known.rpartition(".")[2], known)
    near = get_close_matches(name.lower(), leaves, n=1, cutoff=0.7)
    return f"; is {leaves[near[0]]} meant?" if near else "; the name of a comment begins with _ or //"
