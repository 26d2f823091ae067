"""The OCR engines that an evaluation can read with, by their names on the command line."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

import numpy as np
import torch

from anytext2.core.line_crop import crop_line, quad_from_points, recognizer_input
from anytext2.model.recognizer import Recognizer, ctc_greedy_decode, load_charset
from distill.config.schema import Recipe
from distill.evaluation import ENGINES
from distill.evaluation.ocr import OcrEngine, OcrNotInstalled, RapidOcr
from distill.losses.terms import terms_with_recognizer

DUGUANG = "damo/cv_convnextTiny_ocr-recognition-general_damo"


class DuGuangOcr:
    """The engine of AnyText's published scores, from modelscope; lines are cropped as AnyText2 crops them.

    Raises OcrNotInstalled where modelscope or the model, which is not downloaded here, is missing.
    """

    name = "modelscope " + DUGUANG

    def __init__(self) -> None:
        how = f"pip install modelscope, then modelscope download --model {DUGUANG}"
        try:
            hub = importlib.import_module("modelscope.hub.snapshot_download")
            pipelines = importlib.import_module("modelscope.pipelines")
        except ImportError as error:
            raise OcrNotInstalled(f"--ocr duguang: needs modelscope ({error}): {how}") from error
        try:
            folder = hub.snapshot_download(DUGUANG, local_files_only=True)
        except Exception as error:  # modelscope raises ValueError or errors of its own, by release
            raise OcrNotInstalled(f"--ocr duguang: the model is not on this machine: {how}") from error
        # Its weights are a pickle: only tensors may be loaded from it.
        before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            self._pipeline = pipelines.pipeline("ocr-recognition", model=folder)
        except Exception as error:
            raise OcrNotInstalled(f"--ocr duguang: {folder} cannot be loaded ({_first_words(error)}): {how}") from error
        finally:
            if before is None:
                del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
            else:
                os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before

    def recognize_lines(self, image: np.ndarray, polygons: Sequence[np.ndarray]) -> list[str]:
        """The texts inside `polygons` of a uint8 RGB picture [H, W, 3]; '' for a line of less than a pixel."""
        texts = []
        for crop in _crops(_chw(image), polygons):
            if crop is None:
                texts.append("")
                continue
            bgr = (crop.flip(0) * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            texts.append(str(self._pipeline(bgr)["text"][0]))
        return texts

    def in_charset(self, text: str) -> bool:
        """Always True: the engine's charset is not published apart from the model."""
        return True


class ModelOcr:
    """The model's own recogniser (`text_predictor`), which was trained on glyph lines and not on pictures."""

    name = "the model's own text_predictor"

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer
        self._charset = load_charset(recognizer.cfg.charset, recognizer.cfg.n_classes)

    @torch.inference_mode()
    def recognize_lines(self, image: np.ndarray, polygons: Sequence[np.ndarray]) -> list[str]:
        """The texts inside `polygons` of a uint8 RGB picture [H, W, 3]; '' for a line of less than a pixel."""
        crops = _crops(_chw(image), polygons)
        inputs = [recognizer_input(crop[None]) for crop in crops if crop is not None]
        if not inputs:
            return [""] * len(crops)
        device = self._recognizer.head.fc.weight.device
        read = iter(ctc_greedy_decode(self._recognizer(torch.cat(inputs).to(device)).logits, self._charset))
        return ["" if crop is None else next(read) for crop in crops]

    def in_charset(self, text: str) -> bool:
        return set(text) <= set(self._charset)


def make_ocr_engine(name: str, recipe: Recipe, recognizer: Recognizer, threads: int) -> OcrEngine:
    """The engine called `name`.

    Raises OcrNotInstalled, or ValueError for the model's own recogniser where the student was trained against it.
    """
    assert name in ENGINES, name
    if name == "duguang":
        return DuGuangOcr()
    if name == "rapidocr":
        return RapidOcr(threads)
    if trained_against_recognizer(recipe):
        raise ValueError(
            "--ocr own: this student was trained to please the model's own recogniser, which cannot judge it; "
            "choose rapidocr or duguang"
        )
    return ModelOcr(recognizer)


def trained_against_recognizer(recipe: Recipe) -> bool:
    """Whether the recipe's objective has a loss term that uses the model's own recogniser."""
    return bool(terms_with_recognizer(recipe.student.terms))


def _chw(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255.0


def _crops(image: torch.Tensor, polygons: Sequence[np.ndarray]) -> list[torch.Tensor | None]:
    return [crop_line(image, quad_from_points(polygon)) for polygon in polygons]


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
