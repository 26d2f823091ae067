"""Shared fixtures. `anytext2` is imported first: it makes torchvision importable beside a CPU build of torch."""

from __future__ import annotations

import os

import anytext2  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")
