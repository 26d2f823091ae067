"""The configuration of the complete model, and its YAML files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anytext2.model.recognizer import CONFIG_DIR, RecognizerConfig
from anytext2.model.text_embedding import TextEmbeddingConfig
from anytext2.model.text_encoder import TextEncoderConfig
from anytext2.model.unet import UNetConfig
from anytext2.model.vae import VAEConfig
from anytext2.model.writenet import HINT_DOWNSAMPLING, WriteNetConfig


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule: `timesteps` betas from linear_start to linear_end with evenly spaced square roots."""

    timesteps: int = 1000
    linear_start: float = 0.00085
    linear_end: float = 0.0120

    def __post_init__(self) -> None:
        if self.timesteps < 2:
            raise ValueError(f"schedule.timesteps = {self.timesteps}: must be >= 2")
        if not 0 < self.linear_start < self.linear_end < 1:
            raise ValueError(
                f"schedule.linear_start = {self.linear_start}, linear_end = {self.linear_end}: must rise within (0, 1)"
            )


@dataclass(frozen=True)
class AnyText2Config:
    """One sub-config for each component. The defaults are official AnyText2 v2.0 on Stable Diffusion 1.5."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    writenet: WriteNetConfig = field(default_factory=WriteNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    text_embedding: TextEmbeddingConfig = field(default_factory=TextEmbeddingConfig)
    recognizer: RecognizerConfig = field(default_factory=RecognizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self.unet, name) != self.vae.z_channels:
                raise ValueError(
                    f"unet.{name} = {getattr(self.unet, name)} must equal vae.z_channels = {self.vae.z_channels}"
                )
        if self.unet.context_dim != self.text_encoder.width:
            raise ValueError(
                f"unet.context_dim = {self.unet.context_dim} must equal text_encoder.width = {self.text_encoder.width}"
            )
        if self.vae.downsampling != HINT_DOWNSAMPLING:
            raise ValueError(
                f"vae.ch_mult has {len(self.vae.ch_mult)} levels: give 4, the hints come in cells of "
                f"{HINT_DOWNSAMPLING} pixels"
            )


def load_model_config(path_or_name: str | Path) -> AnyText2Config:
    """Reads a model config: a YAML file, or the name of one in anytext2/configs ('tiny', 'sd15').

    Raises:
        ValueError: the file is missing or not YAML, or has an unknown key or an invalid value.
    """
    path = config_path(path_or_name)
    try:
        loaded = OmegaConf.load(path)
        merged = OmegaConf.merge(OmegaConf.structured(AnyText2Config), loaded)
        return cast(AnyText2Config, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def config_path(path_or_name: str | Path) -> Path:
    """The file of a shipped name, or the path itself. Raises ValueError if there is no such file."""
    shipped = {path.stem.removeprefix("anytext2_"): path for path in sorted(CONFIG_DIR.glob("anytext2_*.yaml"))}
    path = shipped.get(str(path_or_name), Path(path_or_name))
    if not path.is_file():
        raise ValueError(f"model config {str(path_or_name)!r}: no such file; names that ship: {', '.join(shipped)}")
    return path
