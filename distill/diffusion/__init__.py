"""Noise schedule and samplers. The samplers' names are here, apart from their code, which needs torch."""

from __future__ import annotations

SAMPLER_NAMES = ("ddim", "consistency", "phased", "trajectory")
"""The keys of `SAMPLERS` in distill/diffusion/samplers.py, in its order."""
