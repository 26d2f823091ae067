"""The other OCR engines: the model's own recogniser, and DuGuang's by a stand-in for modelscope."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from anytext2.glyphs.fonts import load_font_table
from anytext2.glyphs.render import glyph_line
from anytext2.model.anytext2 import AnyText2
from distill.config.schema import ModelConfig, Recipe
from distill.evaluation.ocr import OcrNotInstalled
from distill.evaluation.ocr_engines import DUGUANG, DuGuangOcr, ModelOcr, make_ocr_engine, trained_against_recognizer
from distill.inference.model import make_model


@pytest.fixture(scope="module")
def tiny() -> AnyText2:
    return make_model(ModelConfig(), seed=0).eval()


@pytest.mark.heavy
def test_the_model_s_own_recogniser_reads(tiny: AnyText2) -> None:
    reader = ModelOcr(tiny.text_predictor)
    image, (polygon,) = _of("Hello")
    read = reader.recognize_lines(image, [polygon, polygon + 0.0])
    assert read[0] == read[1]
    assert sum(reader.recognize_lines(*_of(word))[0] == word for word in ("Hello", "market", "SALE", "中国")) >= 3
    assert reader.recognize_lines(image, []) == []
    assert reader.recognize_lines(image, [np.zeros((4, 2), np.float32), polygon])[0] == ""
    assert reader.in_charset("Hello") and not reader.in_charset("Ж")


def _of(word: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """White on black, as the glyph lines that the shipped recogniser was trained on, in the middle of a picture."""
    image = np.zeros((120, 560, 3), np.uint8)
    image[20:100, 20:532] = 255 * glyph_line(word, load_font_table().default)[..., None]
    return image, [np.array([[20, 20], [531, 20], [531, 99], [20, 99]], np.float32)]


@pytest.mark.parametrize(
    ("terms", "against"),
    [
        (None, False),
        ({}, False),
        ({"gradient": {"weight": 1.0}}, False),
        ({"ocr_features": {"weight": 1.0}}, True),
        ({"gradient": {"weight": 1.0}, "ocr_ctc": {"weight": 0.1}}, True),
    ],
)
def test_what_was_trained_against_the_recogniser_is_not_judged_by_it(terms: Any, against: bool, tiny: AnyText2) -> None:
    recipe = Recipe(objective={"name": "consistency"} | ({} if terms is None else {"terms": terms}))
    assert trained_against_recognizer(recipe) is against
    if against:
        with pytest.raises(ValueError, match="--ocr own: this student.*rapidocr or duguang"):
            make_ocr_engine("own", recipe, tiny.text_predictor, 1)
    else:
        assert isinstance(make_ocr_engine("own", recipe, tiny.text_predictor, 1), ModelOcr)


def test_without_modelscope_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(OcrNotInstalled, match="--ocr duguang: needs modelscope .*pip install modelscope.*" + DUGUANG):
        DuGuangOcr()


class Modelscope:
    """What is used of modelscope; remembers what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
        self.seen: list[np.ndarray] = []
        self.environment = ""
        for name in ("modelscope", "modelscope.hub", "modelscope.hub.snapshot_download", "modelscope.pipelines"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        self.folder = folder
        sys.modules["modelscope.hub.snapshot_download"].snapshot_download = self.find  # type: ignore[attr-defined]
        sys.modules["modelscope.pipelines"].pipeline = self.pipeline  # type: ignore[attr-defined]

    def find(self, name: str, local_files_only: bool) -> str:
        assert name == DUGUANG and local_files_only  # nothing is downloaded
        if self.folder is None:
            raise ValueError("Cannot find the requested files in the cached path")
        return str(self.folder)

    def pipeline(self, task: str, model: str) -> Any:
        import os

        assert task == "ocr-recognition" and model == str(self.folder)
        self.environment = os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        return self

    def __call__(self, image: np.ndarray) -> dict[str, list[str]]:
        self.seen.append(image)
        return {"text": [f"line {len(self.seen)}"]}


def test_duguang_sees_upright_blue_green_red_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = Modelscope(monkeypatch, tmp_path)
    reader = DuGuangOcr()
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:40, 10:70] = (200, 100, 50)
    box = np.array([[15, 25], [65, 25], [65, 35], [15, 35]], np.float32)
    assert reader.recognize_lines(image, [box, box * 0, box]) == ["line 1", "", "line 2"]
    assert stand_in.seen[0].shape == (10, 50, 3) and stand_in.seen[0].dtype == np.uint8
    assert (stand_in.seen[0][5, 25] == (50, 100, 200)).all()
    assert stand_in.environment == "1" and reader.in_charset("Ж")


def test_without_its_model_one_line_says_where_it_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    Modelscope(monkeypatch, None)
    with pytest.raises(OcrNotInstalled, match="not on this machine: .*modelscope download"):
        DuGuangOcr()
