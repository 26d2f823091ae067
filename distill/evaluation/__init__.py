"""Evaluation. The names that its command line offers are here, apart from the code behind them, which needs torch."""

from __future__ import annotations

ENGINES = ("rapidocr", "duguang", "own")
"""The OCR engines of distill/evaluation/ocr_engines.py."""

PROTOCOL = "anytext-benchmark"

CLIP_MODEL = "ViT-B-32-quickgelu"
"""open_clip's name of OpenAI's ViT-B/32, with which AnyText measures its CLIP scores."""

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
