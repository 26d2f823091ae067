"""Text recognition (OCR) of annotated lines, by an engine that no network of this repository was trained with.

The engine is the PP-OCRv4 recognition model of rapidocr-onnxruntime, an optional package that includes its weights.
Text detection is not used: the annotation says where the lines are. So a detector's errors are not part of the score.
The scores are those of the AnyText benchmark (Tuo et al. 2023, AnyText, section 5.1): exact match of a line (Sen.ACC)
and normalised edit distance (NED).

Coordinates are x, y in pixels. Legend: H/W pixels, P points of a polygon.
"""

from __future__ import annotations

import importlib
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

LINE_HEIGHT = 48
"""Height in pixels of the recogniser's input."""

_SQUARE = 1.2  # a box less elongated than this may be horizontal or vertical text
_VERTICAL_DEGREES = 10.0  # as AnyText2's renderer: a long side this near to the vertical means vertical writing
_TURN = 1.5  # PP-OCR turns a line that is this many times taller than wide


class OcrNotInstalled(ImportError):
    """The optional OCR engine cannot be imported."""


class OcrEngine(Protocol):
    """What an evaluation needs of an OCR engine. name: for summary.json."""

    name: str

    def recognize_lines(self, image: np.ndarray, polygons: Sequence[np.ndarray]) -> list[str]:
        """The texts inside `polygons` ([P, 2] each, pixels) of a uint8 RGB picture [H, W, 3]; '' where none is read."""

    def in_charset(self, text: str) -> bool:
        """Whether the engine knows every character of `text`; without that an exact match is impossible."""


class Embedder(Protocol):
    """An OCR engine that also embeds lines, so that sets of lines can be compared as distributions."""

    def embed(
        self, image: np.ndarray, polygons: Sequence[np.ndarray], characters: Sequence[str]
    ) -> tuple[list[str], np.ndarray]:
        """The texts and the embeddings [n, D] of a picture's lines; see `RapidOcr.embed`."""


class RapidOcr:
    """PP-OCRv4 recognition on the CPU. What is read in a line does not depend on the lines read with it.

    threads: intra-op threads of the engine (1 .. number of cores). batch: lines of similar elongation read in one call.
    Raises OcrNotInstalled, or ValueError for impossible options.
    """

    name = "rapidocr-onnxruntime PP-OCRv4 recognition"

    def __init__(self, threads: int = 1, batch: int = 8) -> None:
        if threads < 1 or batch < 1:
            raise ValueError(f"OCR engine: threads={threads}, batch={batch}: both must be at least 1")
        package, recognizer = _import_engine()
        # RapidOCR() would also load detection and direction models and time them; this is its recognition part.
        model = Path(str(package.__file__)).parent / "models" / "ch_PP-OCRv4_rec_infer.onnx"
        self._engine = recognizer.TextRecognizer(
            {
                "intra_op_num_threads": threads,
                "inter_op_num_threads": 1,
                "use_cuda": False,
                "use_dml": False,
                "model_path": str(model),
                "rec_img_shape": [3, LINE_HEIGHT, 320],
                "rec_batch_num": batch,
            }
        )
        self._batch = batch
        self._classes = {character: n for n, character in enumerate(self._engine.postprocess_op.character) if n}
        self.charset: frozenset[str] = frozenset(self._classes) | {" "}

    def recognize(self, crops: Sequence[np.ndarray]) -> list[str]:
        """The texts of uint8 RGB crops [H, W, 3], as `upright_crop` makes them; '' where nothing is read."""
        return [text for text, _ in self._run(crops)]

    def recognize_lines(self, image: np.ndarray, polygons: Sequence[np.ndarray]) -> list[str]:
        """The texts inside `polygons` of a uint8 RGB picture [H, W, 3]."""
        return self.recognize([upright_crop(image, polygon) for polygon in polygons])

    def embed(
        self, image: np.ndarray, polygons: Sequence[np.ndarray], characters: Sequence[str]
    ) -> tuple[list[str], np.ndarray]:
        """The texts as in `recognize_lines`, and an embedding of each line, float32 [n, len(characters) + 2].

        An embedding holds the square roots of the engine's probabilities, averaged over the line's columns: of each of
        `characters`, of any other character, and of the CTC blank. It has length 1. The Euclidean distance of two
        embeddings is sqrt(2) times the Hellinger distance of the distributions. The order of characters is lost.
        """
        known = [self._classes[c] for c in dict.fromkeys(characters) if c in self._classes]
        texts, embeddings = [], np.zeros((len(polygons), len(characters) + 2), np.float32)
        found = self._run([upright_crop(image, polygon) for polygon in polygons])
        for row, (text, probabilities) in zip(embeddings, found, strict=True):
            texts.append(text)
            row[: len(known)] = probabilities[known]
            row[-1] = probabilities[0]
            row[-2] = max(0.0, 1.0 - float(row.sum()))
        return texts, np.sqrt(embeddings)

    def _run(self, crops: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
        """Text and probabilities float32 [K], averaged over the columns, of every crop."""
        # A batch is padded to its widest line, which can change what is read in the others. So lines are grouped by
        # their elongation rounded up, and every group is padded to that: a property of each line alone.
        groups: dict[int, list[int]] = {}
        for i, crop in enumerate(crops):
            groups.setdefault(max(2, math.ceil(crop.shape[1] / crop.shape[0])), []).append(i)
        found: dict[int, tuple[str, np.ndarray]] = {}
        for elongation, members in groups.items():
            for first in range(0, len(members), self._batch):
                some = members[first : first + self._batch]
                bgr = [np.ascontiguousarray(crops[i][..., ::-1]) for i in some]
                inputs = np.stack([self._engine.resize_norm_img(crop, elongation) for crop in bgr])
                probabilities = self._engine.session(inputs.astype(np.float32))[0]
                texts = [text for text, _confidence in self._engine.postprocess_op(probabilities)]
                found |= dict(zip(some, zip(texts, probabilities.mean(axis=1), strict=True), strict=True))
        return [found[i] for i in range(len(crops))]

    def in_charset(self, text: str) -> bool:
        return all(character in self.charset for character in normalise(text))


def upright_crop(image: np.ndarray, polygon: np.ndarray, height: int = LINE_HEIGHT, margin: float = 0.06) -> np.ndarray:
    """The line inside `polygon` turned upright and scaled to `height` pixels.

    image: uint8 RGB [H, W, 3]; polygon: [P, 2], P >= 3; margin: room left on every side, in line heights.
    Returns uint8 [height, width, 3]; beyond the picture its border is repeated. Raises ValueError on a polygon
    without an area.
    """
    corners = reading_corners(polygon)
    across, down = corners[1] - corners[0], corners[3] - corners[0]
    long, tall = float(np.linalg.norm(across)), float(np.linalg.norm(down))
    room = margin * min(long, tall)
    u, v = room * across / long, room * down / tall
    start = np.stack([corners[0] - u - v, corners[1] + u - v, corners[3] - u + v]).astype(np.float32)
    long, tall = long + 2 * room, tall + 2 * room
    # Shrinking samples the picture too sparsely: such lines are cut at their own size and averaged down.
    scale = max(1.0, height / tall)
    size = (max(1, round(long * scale)), max(1, round(tall * scale)))
    target = np.array([[0, 0], [size[0] - 1, 0], [0, size[1] - 1]], dtype=np.float32)
    transform = cv2.getAffineTransform(start, target)
    line = cv2.warpAffine(image, transform, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    if line.shape[0] >= _TURN * line.shape[1]:
        line = np.ascontiguousarray(np.rot90(line))
    width = max(1, round(line.shape[1] * height / line.shape[0]))
    if line.shape[:2] != (height, width):
        shrinks = line.shape[0] > height
        line = cv2.resize(line, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(line, dtype=np.uint8)


def reading_corners(polygon: np.ndarray) -> np.ndarray:
    """Corners of the smallest rectangle around `polygon` [P, 2] as its text is read, float64 [4, 2].

    Order: start of the line's top edge, its end, end of the bottom edge, its start. The text runs along the long
    side, from left to right, except where the box is nearly square (then along the side nearer to the horizontal) or
    its long side is within 10 degrees of the vertical (vertical writing: the top edge is the short one).
    """
    points = np.asarray(polygon, dtype=np.float32).reshape(-1, 2)
    corners = cv2.boxPoints(cv2.minAreaRect(points)).astype(np.float64) if len(points) >= 3 else points
    edges = np.roll(corners, -1, axis=0) - corners
    lengths = np.linalg.norm(edges, axis=1)
    if len(points) < 3 or not np.isfinite(lengths).all() or lengths.min() < 1.0:
        raise ValueError(f"line polygon {np.asarray(polygon).tolist()}: needs 3 points around an area of over 1 pixel")
    first = int(lengths[1] > lengths[0])  # a long edge (corners, edges and lengths alternate)
    steep = 90.0 - np.degrees(np.arctan2(abs(edges[first][1]), abs(edges[first][0])))  # degrees off the vertical
    nearly_square = lengths.max() < _SQUARE * lengths.min()
    if (nearly_square and steep < 45.0) or steep < _VERTICAL_DEGREES:
        first += 1
    if edges[first][0] < 0:  # from left to right; the edge two further on is the same edge walked back
        first += 2
    corners = np.roll(corners, -first, axis=0)
    across, down = corners[1] - corners[0], corners[3] - corners[0]
    assert across[0] * down[1] > across[1] * down[0], "OpenCV walks a rectangle clockwise on the screen"
    return corners


def normalise(text: str) -> str:
    """The form in which texts are compared: Unicode NFKC, whitespace removed, case kept.

    NFKC unifies full-width and half-width letters and punctuation, which look alike. Spaces are removed because the
    recogniser does not report them reliably.
    """
    return "".join(unicodedata.normalize("NFKC", text).split())


def exact_match(read: str, truth: str) -> bool:
    """Whether the normalised texts are equal."""
    return normalise(read) == normalise(truth)


def ned(read: str, truth: str) -> float:
    """1 - edit distance / length of the longer of the normalised texts: 1 is perfect, 0 shares nothing."""
    first, second = normalise(read), normalise(truth)
    longest = max(len(first), len(second))
    return 1.0 if longest == 0 else 1.0 - levenshtein(first, second) / longest


def levenshtein(first: str, second: str) -> int:
    """Fewest insertions, deletions and substitutions of a character that turn `first` into `second`."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def _import_engine() -> tuple[Any, Any]:
    # onnxruntime 1.29 and later otherwise sends usage data to its maker, and keeps them in ~/.cache.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        package = importlib.import_module("rapidocr_onnxruntime")
        recognizer = importlib.import_module("rapidocr_onnxruntime.ch_ppocr_rec")
    except ImportError as error:
        raise OcrNotInstalled(
            f"reading lines needs an optional package: pip install 'anytext2-distill[ocr]' ({error})"
        ) from error
    return package, recognizer
