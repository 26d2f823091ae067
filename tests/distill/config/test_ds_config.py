"""DeepSpeed's configuration files: which one a machine gets, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.config.ds_config import choose_config, precision_of, read_ds_config
from distill.config.ds_keys import PASSED, sort_keys
from distill.runtime.world import World
from distill.training.engine import init_world
from tests.helpers.models.toy_engine import make_engine, train_one
from tests.helpers.paths import ROOT
from tests.helpers.processes.ranks import all_output, returned, run_ranks
from tests.helpers.processes.training_runs import train_command

DS_CONFIGS = ROOT / "ds_configs"


def cpu_world(size: int = 1) -> World:
    return World(rank=0, local_rank=0, size=size, device=torch.device("cpu"))


def test_without_a_gpu_fp16_falls_back_and_says_so() -> None:
    config, line = choose_config(DS_CONFIGS / "zero2.json", cpu_world(3), fp16_on_cpu=False)
    assert precision_of(config) == "fp32" and config == read_ds_config(DS_CONFIGS / "zero2_cpu.json")
    assert line == "No GPU here: zero2.json (fp16) falls back to zero2_cpu.json (fp32), 3 ranks on the CPU"


@pytest.mark.parametrize(
    ("name", "fp16_on_cpu", "precision"),
    [("zero2.json", True, "fp16"), ("zero2_bf16.json", False, "bf16"), ("zero2_cpu.json", False, "fp32")],
)
def test_what_runs_on_a_cpu_is_left_as_it_is(name: str, fp16_on_cpu: bool, precision: str) -> None:
    config, line = choose_config(DS_CONFIGS / name, cpu_world(), fp16_on_cpu)
    assert config == read_ds_config(DS_CONFIGS / name) and precision_of(config) == precision
    assert line == f"DeepSpeed ZeRO-2: {precision}, 1 rank on the CPU"


def test_on_a_gpu_the_configuration_is_the_one_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    world = replace(cpu_world(2), device=torch.device("cuda", 0))
    config, line = choose_config(DS_CONFIGS / "zero2.json", world, fp16_on_cpu=False)
    assert precision_of(config) == "fp16" and line == "DeepSpeed ZeRO-2: fp16, 2 ranks on Some GPU"


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.name)
def test_shipped_configurations_leave_batch_and_optimizer_to_the_recipe(path: Path) -> None:
    owned = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"}
    assert not (owned | {"optimizer", "scheduler"}) & set(read_ds_config(path))


def beside_zero(entry: str) -> str:
    """A configuration of stage 2 with one more entry."""
    return '{"zero_optimization": {"stage": 2}, ' + entry + "}"


def in_zero(entry: str) -> str:
    return '{"zero_optimization": {"stage": 2, ' + entry + "}}"


def refused(tmp_path: Path, content: str | bytes) -> str:
    """What is said of a file with this content, after its name."""
    path = tmp_path / "ds.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError) as caught:
        read_ds_config(path)
    start, message = f"--deepspeed {path}: ", str(caught.value)
    assert message.startswith(start) and "\n" not in message
    return message.removeprefix(start)


def accepted(tmp_path: Path, content: str) -> dict[str, Any]:
    (tmp_path / "ds.json").write_text(content)
    return read_ds_config(tmp_path / "ds.json")


def test_a_file_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"--deepspeed absent\.json: no such file"):
        read_ds_config(Path("absent.json"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON: line 1"),
        ('{\n  "fp16": {"enabled": yes}}', "not valid JSON: line 2"),
        ("[]", "an object is needed"),
        ("[" * 100_000, "nested too deeply"),
        ('{"fp16": {}, "fp16": {}}', '"fp16" occurs twice'),
        ("{}".encode("utf-16"), "save the file as UTF-8"),
        ("{}", "zero_optimization.stage is missing"),
        ('{"zero_optimization": 2}', "zero_optimization=2 must be an object"),
        ('{"zero_optimization": true}', "zero_optimization=true must be an object"),
        ('{"zero_optimization": {"stage": "auto"}}', "zero_optimization.stage is missing"),
        ('{"zero_optimization": {"stage": 3}}', "zero_optimization.stage=3 must be 2"),
        ('{"zero_optimization": {"stage": "2"}}', 'zero_optimization.stage="2" must be 2'),
        (beside_zero('"fp16": true'), "fp16=true must be an object"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str | bytes, words: str) -> None:
    assert words in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('"train_batch_size": 32', "train_batch_size=32: the recipe's train.effective_batch sets it"),
        ('"gradient_clipping": 1.0', "gradient_clipping=1.0: the recipe's train.max_grad_norm sets it"),
        ('"optimizer": {"type": "AdamW"}', 'optimizer.type="AdamW": the recipe\'s train.optimizer sets it'),
        (
            '"optimizer": {"type": "auto", "params": {"lr": 5e-5, "eps": "auto"}}',
            "optimizer.params.lr=5e-05: the recipe's train.learning_rate",
        ),
        ('"scheduler": {"params": {"warmup_num_steps": 9}}', "the recipe's train.warmup_steps"),
        ('"steps_per_print": 10', "the recipe's log.every"),
        ('"amp": {"enabled": true}', 'amp={"enabled": true} is not supported: fp16.enabled'),
        ('"flops_profiler": {"enabled": true, "profile_step": 1}', "flops_profiler="),
        ('"pipeline": {"stages": 2}', "splits the data only"),
        ('"compression_training": {"weight_quantization": {}}', "compression_training="),
        ('"activation_checkpointing": {"partition_activations": true}', "model.activation_checkpointing"),
        ('"wandb": {"enabled": true}', "MLflow"),
        ('"elasticity": {"enabled": true}', "elasticity="),
        ('"fp16": {"enabled": "true"}', 'fp16.enabled="true" must be true or false'),
        ('"fp16": {"loss_scale": NaN}', "fp16.loss_scale=NaN must be a number of at least 0"),
        ('"fp16": {"initial_scale_power": 1e9}', "at most 64"),
        ('"fp16": {"loss_scale_window": true}', "must be a whole number"),
        ('"fp16": {"enabled": true}, "bf16": {"enabled": true}', "switch one of them off"),
        ('"communication_data_type": "float16"', 'must be "fp32", "fp16" or "bf16"'),
        ('"bfloat16": {"enabled": true}', "its name is bf16"),
        ('"FP16": {"enabled": true}', "is fp16 meant?"),
        ('"loss_scale": 128', "is fp16.loss_scale meant?"),
        ('"micro_batch_size_per_gpu": 4', "is train_micro_batch_size_per_gpu meant?"),
        ('"nonsense": 1', "DeepSpeed has no such key; the name of a comment begins with _"),
        ('"line\\nbreak": 1', "line\\nbreak=1"),
    ],
)
def test_a_key_that_is_not_ours_to_take_is_named_with_its_value(tmp_path: Path, entry: str, words: str) -> None:
    assert words in refused(tmp_path, beside_zero(entry))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('"offload_optimizer": {"device": "cpu"}', 'zero_optimization.offload_optimizer={"device": "cpu"}'),
        ('"cpu_offload": true', "zero_optimization.cpu_offload=true is not supported"),
        ('"offload_param": {"device": "nvme"}', "it belongs to stage 3"),
        ('"stage3_max_live_parameters": 1e9', "it belongs to stage 3"),
        ('"zero_quantized_gradients": true', "it belongs to stage 3"),
        ('"round_robin_gradients": true', "checkpoints need"),
        ('"reduce_bucket_size": "5e8"', 'zero_optimization.reduce_bucket_size="5e8" must be a whole number'),
        ('"allgather_bucket_size": 7', "must be an even number"),
        ('"overlap_comm": 1', "zero_optimization.overlap_comm=1 must be true or false"),
        ('"reduce_bucket_sise": 5', "is zero_optimization.reduce_bucket_size meant?"),
    ],
)
def test_a_key_of_zero_that_is_not_supported_is_named(tmp_path: Path, entry: str, words: str) -> None:
    assert words in refused(tmp_path, in_zero(entry))


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    line = refused(tmp_path, '{"train_batch_size": 1, "amp": {"enabled": true}, "fp16": {"enabled": 1}, "x_y": 0}')
    assert all(word in line for word in ("train_batch_size", "amp", "fp16.enabled", "x_y", "stage is missing"))
    many = refused(tmp_path, json.dumps({f"x_{number}": 0 for number in range(20)}))
    assert many.count("no such key") == 8 and "; and 13 more" in many


def test_what_deepspeed_gets_of_a_file_with_auto_comments_and_switched_off_parts(tmp_path: Path) -> None:
    content = """// shared by all runs
    {
      "_comment": "text", "//": 1, "# lr": 2, "$schema": "http://x#y",   # three kinds of comment
      "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "allgather_bucket_size": "auto",
        "offload_optimizer": {"device": "none"}, "offload_param": null, "cpu_offload": false, "sub_group_size": "auto",
        "zero_hpz_partition_size": 1, /* "stage": 3 */ },
      "optimizer": {"type": "auto", "params": {"lr": "auto"}}, "train_batch_size": "auto", "scheduler": {},
      "amp": {"enabled": false}, "flops_profiler": {"enabled": "auto"}, "gradient_predivide_factor": 1.0,
      "zero_allow_untested_optimizer": true,
    }"""
    assert accepted(tmp_path, content) == {"zero_optimization": {"stage": 2, "reduce_bucket_size": 500_000_000}}


@pytest.mark.parametrize(
    ("sections", "precision"),
    [
        ('"fp16": {"enabled": "auto"}', "fp16"),
        ('"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}', "fp16"),
        ('"fp16": {"enabled": "auto"}, "bf16": {"enabled": true}', "bf16"),
        ('"bf16": {"enabled": "auto"}', "bf16"),
        ('"fp16": "auto"', "fp32"),
    ],
)
def test_auto_precision_is_that_of_the_shipped_configuration(tmp_path: Path, sections: str, precision: str) -> None:
    assert precision_of(accepted(tmp_path, beside_zero(sections))) == precision


def test_the_shipped_cpu_configuration_is_used_wherever_the_file_lies(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(beside_zero('"fp16": {"enabled": "auto"}'))
    config, line = choose_config(tmp_path / "mine.json", cpu_world(), fp16_on_cpu=False)
    assert config == read_ds_config(DS_CONFIGS / "zero2_cpu.json") and "mine.json (fp16) falls back" in line


def test_what_is_left_to_deepspeed_is_said(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(
        in_zero('"reduce_bucket_size": "auto"}, "fp16": {"enabled": false, "hysteresis": "auto"')
    )
    _, line = choose_config(tmp_path / "mine.json", cpu_world(), fp16_on_cpu=False)
    assert line.endswith(
        'the CPU; DeepSpeed\'s defaults for "auto": zero_optimization.reduce_bucket_size, fp16.hysteresis'
    )


# --- the keys that are passed on, in a real engine ---


def train_with(settings: dict[str, Any]) -> dict[str, float]:
    """One update of a small engine under these settings, by dotted key: the sums of its weights."""
    config: dict[str, Any] = {"zero_optimization": {"stage": 2}}
    for path, value in settings.items():
        *outer, leaf = path.split(".")
        section = config
        for part in outer:
            section = section.setdefault(part, {})
        section[leaf] = value
    assert sort_keys(config).passed == config
    engine = make_engine(init_world(0, 1), config)
    train_one(engine, 0)
    return {name: float(slots["master"].sum()) for name, slots in engine.full_state().items()}


def train_with_each(all_settings: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [train_with(settings) for settings in all_settings]


@pytest.mark.process
def test_every_supported_key_trains_the_same_on_two_ranks() -> None:
    """A key that changed what the trainer gathers of its shards would spoil checkpoints without a word."""
    zero = [{path: value} for path in PASSED for value in unusual(path) if path.startswith("zero_")]
    precise = {path: unusual(path)[0] for path in PASSED if path.startswith(("fp16", "data_types"))}
    other = {
        path: unusual(path)[0]
        for path in PASSED
        if not path.startswith(("zero_", "fp16", "bf16", "data_types", "comm"))
    }
    chatty = {path: unusual(path)[0] for path in PASSED if path.startswith("comms_logger")}
    settings = [{}, other, chatty, precise, *zero, *({"communication_data_type": d} for d in ("fp32", "fp16", "bf16"))]
    plain, *changed = returned(run_ranks(2, train_with_each, settings))[0]
    for found, given in zip(changed, settings[1:], strict=True):
        assert found == pytest.approx(plain, abs=2e-2), given


def unusual(path: str) -> list[Any]:
    """Values that the key accepts."""
    candidates = (True, False, 6, "fp16", "fp32", "bf16", [])
    return [value for value in candidates if PASSED[path].read(value) is not None and path != "zero_optimization.stage"]


@pytest.mark.process
def test_a_run_with_a_faulty_file_ends_before_anything_is_made(tmp_path: Path) -> None:
    """Two ranks: one line, exit code 2, and no run folder."""
    path = tmp_path / "offload.json"
    path.write_text(in_zero('"offload_optimizer": {"device": "cpu", "pin_memory": true}'))
    results = run_ranks(2, train_command, ["--deepspeed", str(path), f"run_root={tmp_path / 'runs'}"])
    assert [result.exit_code for result in results] == [2, 2], all_output(results)
    (line,) = [line for result in results for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "zero_optimization.offload_optimizer" in line and "Traceback" not in all_output(results)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
