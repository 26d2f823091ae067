"""What users of the earlier scripts have: a YAML file of v2_4 and a command line of v1, as published."""

from __future__ import annotations

from pathlib import Path

V2_4 = """
model:
  config: models_yaml/anytext2_sd15.yaml
  teacher_ckpt: models/anytext_v2.0.ckpt
  output_dir: student_model_v2/checkpoints
data:
  cache_dir: dataset_cache/anytext2
  auto_list_path: dataset_cache/anytext2/train_paths.list
  lmdb_path: ""
  dataset_json: [ocr_data/Art/data_v1.2b.json, laion_word/data_v1.2b.json, wukong_word/wukong_1of5/data_v1.2b.json]
  resolution: 512
  wm_thresh: 1.0
  streaming: true
  streaming_threshold_mb: 200
train:
  use_optimized: true
  add_time_suffix: true
  train_script: student_model_v2/train_lcm_anytext_v2_4.py
  train_batch_size: 4
  gradient_accumulation_steps: 4
  learning_rate: 1e-4
  w_min: 5.0
  w_max: 15.0
  lcm_step: 1
  sigma_data: 0.5
  timestep_scaling: 10.0
  target_from_teacher: false
  lr_scheduler: warmup_cosine
  lr_warmup_steps: 500
  max_train_steps: 50000
  resume_path: ""
  mixed_precision: fp16
  lora_rank: 64
  lora_alpha: 64
  lora_dropout: 0.0
  num_inference_steps: 50
  cfg_scale: 7.5
  num_workers: 4
  persistent_workers: true
  mp_context: ""
  save_steps: 2000
  logging_steps: 10
  log_image_steps: 500
  log_image_samples: 4
  log_image_infer_steps: 4
  train_ratio: 0.98
  val_ratio: 0.01
  test_ratio: 0.01
  seed: 42
system:
  num_gpus: 2
  notes: "accelerate launch --multi_gpu"
"""

V1 = (
    "accelerate launch --mixed_precision fp16 student_model/train_lcm_anytext.py "
    "--config models_yaml/anytext2_sd15.yaml --teacher_ckpt models/anytext_v2.0.ckpt --use_real_dataset "
    "--dataset_json demodataset/annotations/demo_data.json "
    "--train_batch_size 12 --gradient_accumulation_steps 4 --max_train_steps 50000 --font_hint_area 0.7 1.0 "
    "--num_inference_steps 8"
)


def write_v2_4(folder: Path, *changes: tuple[str, str]) -> Path:
    """The YAML file with texts replaced."""
    text = V2_4
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "v4.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def old_target_modules() -> str:
    """The list that came with v1, which was derived without a model: 517 names, in a list of Python's."""
    projections = [f"to_{letter}" for letter in ("k", "out.0", "q", "v")]

    def attention(prefix: str, kinds: str) -> list[str]:
        return [f"{prefix}.{kind}.{projection}" for kind in kinds.split() for projection in projections]

    names = [f"control_model.zero_convs.{n}.0" for n in range(13)]
    for network, kinds, parts in (
        ("control_model", "attn1 attn2", ("input_blocks",)),
        ("model.diffusion_model", "attn1 attn1x attn2 attn2x", ("input_blocks", "output_blocks")),
    ):
        names += attention(f"{network}.middle_block.0", kinds)
        for part in parts:
            for n in range(1, 13):
                names += attention(f"{network}.{part}.{n}.1.transformer_blocks.0", kinds)
    quoted = "".join(f'    "{name}",\n' for name in sorted(names))
    return f"# target modules\n\ntarget_modules = [\n{quoted}]\n"
