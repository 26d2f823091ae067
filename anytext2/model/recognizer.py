"""The text line recogniser: PP-OCRv3 recognition (MobileNetV1 backbone, SVTR neck, CTC head) in PyTorch.

AnyText2 has two of them: `text_predictor` (glyph features, OCR loss) and `embedding_manager.font_predictor` (font
features). Attribute names are those of the official checkpoint. Architecture: Du et al. 2022, "SVTR: Scene Text
Recognition with a Single Visual Model", and PaddleOCR's PP-OCRv3 recognition model.

Shape suffixes: N lines, C channels, H/W pixels, T = 40 columns, D features, K classes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"
COLUMNS = 40
"""Number of output columns for the fixed input width of 320 pixels."""
CTC_BLANK = 0
"""Class of the CTC blank."""
PPOCR_CHARSET = "ppocr"

# (channels in, channels out, kernel, stride, squeeze-excite) of the 13 depthwise-separable blocks at scale 1.
_BLOCKS: tuple[tuple[int, int, int, tuple[int, int], bool], ...] = (
    (32, 64, 3, (1, 1), False),
    (64, 128, 3, (1, 1), False),
    (128, 128, 3, (1, 1), False),
    (128, 256, 3, (2, 1), False),
    (256, 256, 3, (1, 1), False),
    (256, 512, 3, (2, 1), False),
    *((512, 512, 5, (1, 1), False),) * 5,
    (512, 1024, 5, (2, 1), True),
    (1024, 1024, 5, (1, 2), True),
)


@dataclass(frozen=True)
class RecognizerConfig:
    """Widths of the recogniser, and its characters. The defaults are the official model's.

    scale: multiplies the backbone's channels. charset: 'ppocr', or a text file with one character a line; a relative
    path is relative to anytext2/configs. n_classes: characters + 2; the CTC blank is first, the space last.
    """

    scale: float = 0.5
    neck_dims: int = 64
    neck_hidden: int = 120
    depth: int = 2
    heads: int = 8
    n_classes: int = 6625
    charset: str = PPOCR_CHARSET

    def __post_init__(self) -> None:
        if not self.scale > 0 or self.backbone_width < 8:
            raise ValueError(f"recognizer.scale = {self.scale}: must leave channels, try 0.25 or 0.5")
        if self.neck_hidden % self.heads:
            raise ValueError(f"recognizer.neck_hidden = {self.neck_hidden} must be a multiple of heads = {self.heads}")
        if self.n_classes < 3:
            raise ValueError(f"recognizer.n_classes = {self.n_classes}: blank, space and a character make at least 3")

    @property
    def backbone_width(self) -> int:
        """Channels of the backbone's output."""
        return int(_BLOCKS[-1][1] * self.scale)

    @property
    def feature_size(self) -> int:
        """Size of one line's flattened features."""
        return COLUMNS * self.neck_dims


class RecognizerOutput(NamedTuple):
    """logits: [N, 40, K] before the softmax, class 0 is the blank. features: [N, 40, D], the head's input."""

    logits: Tensor
    features: Tensor


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that computes in at least float32 and returns the input's dtype.

    Engines cast a network's weights but not its running statistics. torch's batch norm refuses mixed dtypes.
    """

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        if not self.training and all(tensor.dtype == x.dtype for tensor in tensors):
            return F.batch_norm(x, *tensors, False, self.momentum, self.eps)
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.training:
            assert self.running_mean.dtype == dtype, "train a recogniser with statistics in float32"
            self.num_batches_tracked.add_(1)
        mean, var, weight, bias = (tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors)
        return F.batch_norm(x.to(dtype), mean, var, weight, bias, self.training, self.momentum, self.eps).to(x.dtype)


class ConvNorm(nn.Module):
    """Backbone convolution without bias, batch norm, hard-swish."""

    def __init__(
        self, width_in: int, width_out: int, kernel: int, stride: int | tuple[int, int] = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self._conv = nn.Conv2d(width_in, width_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self._batch_norm = BatchNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(self._batch_norm(self._conv(x)))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that is computed from the means of all channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width // 4, 1)
        self.conv2 = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv2(F.relu(self.conv1(x.mean(dim=(2, 3), keepdim=True))))
        return x * F.hardsigmoid(gate)


class DepthwiseSeparable(nn.Module):
    """Depthwise convolution, optional squeeze-excite, 1x1 convolution."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: tuple[int, int], squeeze: bool) -> None:
        super().__init__()
        self._depthwise_conv = ConvNorm(width_in, width_in, kernel, stride, groups=width_in)
        self._se = SqueezeExcite(width_in) if squeeze else None
        self._pointwise_conv = ConvNorm(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self._depthwise_conv(x)
        if self._se is not None:
            x = self._se(x)
        return self._pointwise_conv(x)


class Backbone(nn.Module):
    """[N, 3, 48, 320] -> [N, C, 1, 40]."""

    def __init__(self, cfg: RecognizerConfig) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, int(32 * cfg.scale), 3, stride=2)
        self.block_list = nn.Sequential(
            *(
                DepthwiseSeparable(int(width_in * cfg.scale), int(width_out * cfg.scale), kernel, stride, squeeze)
                for width_in, width_out, kernel, stride, squeeze in _BLOCKS
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.block_list(self.conv1(x)), kernel_size=2)


class NeckConv(nn.Module):
    """Neck convolution without bias, batch norm, swish."""

    def __init__(self, width_in: int, width_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class Mixer(nn.Module):
    """Self-attention over the columns."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_NTD: Tensor) -> Tensor:
        query, key, value = self.qkv(x_NTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, swish, dropout, linear, dropout."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.silu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(x), self.dropout, self.training)


class NeckBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.mixer = Mixer(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = FeedForward(width, dropout)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.dropout(self.mixer(self.norm1(x)), self.dropout, self.training)
        return x + self.mlp(self.norm2(x))


class NeckEncoder(nn.Module):
    """SVTR encoder over the columns, [N, C, 1, T] -> [N, D, 1, T], with a skip connection from the input."""

    def __init__(self, cfg: RecognizerConfig) -> None:
        super().__init__()
        width, inner, hidden = cfg.backbone_width, cfg.backbone_width // 8, cfg.neck_hidden
        self.conv1 = NeckConv(width, inner, 3)
        self.conv2 = NeckConv(inner, hidden, 1)
        self.svtr_block = nn.ModuleList(NeckBlock(hidden, cfg.heads) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.conv3 = NeckConv(hidden, width, 1)
        self.conv4 = NeckConv(2 * width, inner, 3)
        self.conv1x1 = NeckConv(inner, cfg.neck_dims, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv2(self.conv1(x)).squeeze(2).transpose(1, 2)
        for block in self.svtr_block:
            z = block(z)
        z = self.conv3(self.norm(z).transpose(1, 2).unsqueeze(2))
        return self.conv1x1(self.conv4(torch.cat([x, z], dim=1)))


class Neck(nn.Module):
    """[N, C, 1, 40] -> features [N, 40, D]."""

    def __init__(self, cfg: RecognizerConfig) -> None:
        super().__init__()
        self.encoder = NeckEncoder(cfg)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).squeeze(2).transpose(1, 2)


class Head(nn.Module):
    """One linear layer from features to classes."""

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Recognizer(nn.Module):
    """Recognises one line of text. `anytext2.core.line_crop` makes its input."""

    def __init__(self, cfg: RecognizerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = Backbone(cfg)
        self.neck = Neck(cfg)
        self.head = Head(cfg.neck_dims, cfg.n_classes)

    def features(self, x_NCHW: Tensor) -> Tensor:
        """Features [N, 40, D] of lines [N, 3, 48, 320] in [-1, 1], padded on the right with 0."""
        # Depthwise convolutions are about 1.5 times as fast in channels-last, also on CPUs.
        x = x_NCHW.to(self.head.fc.weight.dtype, memory_format=torch.channels_last)
        return self.neck(self.backbone(x))

    def forward(self, x_NCHW: Tensor) -> RecognizerOutput:
        """Logits [N, 40, K] and features [N, 40, D] of lines [N, 3, 48, 320]; see `features`."""
        features = self.features(x_NCHW)
        return RecognizerOutput(self.head(features), features)


# --- characters ------------------------------------------------------------------------------------------------------


def load_charset(charset: str, n_classes: int) -> tuple[str, ...]:
    """The character of each class: '' for class 0 (the CTC blank), a space for the last one.

    charset: 'ppocr' (the characters of PaddleOCR's Chinese models, read from an installed rapidocr-onnxruntime), or a
    UTF-8 text file with one character a line.
    Raises ValueError if the characters cannot be found or are not n_classes - 2.
    """
    if charset == PPOCR_CHARSET:
        characters = _ppocr_characters()
    else:
        path = Path(charset) if Path(charset).is_absolute() else CONFIG_DIR / charset
        if not path.is_file():
            raise ValueError(f"recognizer.charset = {charset!r}: no file {path}")
        characters = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    if len(characters) + 2 != n_classes:
        raise ValueError(
            f"recognizer.charset = {charset!r} has {len(characters)} characters, which makes {len(characters) + 2} "
            f"classes with blank and space, but recognizer.n_classes = {n_classes}"
        )
    return ("", *characters, " ")


def _ppocr_characters() -> list[str]:
    """The 6623 characters of PP-OCR, from the metadata of rapidocr-onnxruntime's recognition model."""
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    models = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("models/*rec*.onnx"))
    if not models:
        raise ValueError(
            "recognizer.charset = 'ppocr': the list comes with rapidocr-onnxruntime (pip install "
            "rapidocr-onnxruntime); or set charset to the path of PaddleOCR's ppocr_keys_v1.txt"
        )
    from onnxruntime import InferenceSession

    session = InferenceSession(str(models[0]), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map["character"].splitlines()


def ctc_targets(texts: Sequence[str], charset: Sequence[str]) -> tuple[Tensor, Tensor]:
    """CTC targets of texts: class numbers int64 [N, S], padded with the blank, and lengths int64 [N].

    A character outside the charset gets the last class, as in AnyText2's OCR loss.
    """
    class_of = {character: number for number, character in enumerate(charset) if character}
    rows = [[class_of.get(character, len(charset) - 1) for character in text] for text in texts]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    targets = torch.full((len(rows), max(map(len, rows), default=0)), CTC_BLANK, dtype=torch.int64)
    for target, row in zip(targets, rows, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return targets, lengths


def ctc_greedy_decode(logits_NTK: Tensor, charset: Sequence[str]) -> list[str]:
    """Greedy CTC decoding of each line: best class of each column, repeats merged, blanks removed."""
    assert logits_NTK.shape[-1] == len(charset), (logits_NTK.shape, len(charset))
    texts = []
    for classes in logits_NTK.argmax(dim=-1).cpu():
        merged = torch.unique_consecutive(classes)
        texts.append("".join(charset[number] for number in merged.tolist() if number != CTC_BLANK))
    return texts
