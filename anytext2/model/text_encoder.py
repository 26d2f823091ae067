"""The CLIP text tower (Radford et al. 2021) with AnyText2's two uses of it.

Image captions go to the UNet: cut into chunks of 75 tokens, encoded one by one, concatenated. Text captions go to the
WriteNet: one chunk, in which each placeholder `*` is replaced by the embedding of one line of text.

Shape suffixes: B batch, K chunks, T tokens (77 a chunk), D width, N lines of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77
START_TOKEN = 49406
END_TOKEN = 49407
"""Ends a caption, and pads it (open_clip pads with 0, Stable Diffusion and AnyText2 with this one)."""
PLACEHOLDER_TOKEN = 265
"""`*` standing alone. Joined to punctuation (`*,` `*.` `**`) it becomes another token and is no placeholder."""


@dataclass(frozen=True)
class TextEncoderConfig:
    """Size of the tower; the defaults are CLIP ViT-L/14's.

    image_chunks: chunks of 75 tokens every image caption gets. 0 = as many as the longest one of the batch needs, as
    the reference has it; with a number (longer captions are cut) the encoding does not depend on the batch.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    image_chunks: int = 0

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"text_encoder.width = {self.width} must be a multiple of heads = {self.heads}")
        if self.layers < 1:
            raise ValueError(f"text_encoder.layers = {self.layers}: must be >= 1")
        if self.image_chunks < 0:
            raise ValueError(f"text_encoder.image_chunks = {self.image_chunks}: 0 (as needed) or more")


@lru_cache(maxsize=1)
def clip_tokenizer() -> SimpleTokenizer:
    """CLIP's byte-pair tokenizer; its vocabulary comes with open_clip."""
    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


@lru_cache(maxsize=4096)
def _token_ids(caption: str) -> tuple[int, ...]:
    return tuple(clip_tokenizer().encode(caption))


def tokenize_text_captions(captions: Sequence[str]) -> Tensor:
    """Token ids int64 [B, 77] of text captions; what is longer is cut."""
    return torch.stack([_wrap(_token_ids(caption)[: CONTEXT_LENGTH - 2]) for caption in captions])


def tokenize_image_captions(captions: Sequence[str], n_chunks: int = 0) -> Tensor:
    """Token ids int64 [B, K, 77] of image captions in chunks of 75; K as needed by the longest, or `n_chunks`."""
    length = CONTEXT_LENGTH - 2
    rows = [_token_ids(caption) for caption in captions]
    n_chunks = n_chunks or max(1, -(-max(map(len, rows)) // length))
    return torch.stack(
        [torch.stack([_wrap(row[k * length : (k + 1) * length]) for k in range(n_chunks)]) for row in rows]
    )


def _wrap(ids: Sequence[int]) -> Tensor:
    """START, the ids, END, and END again up to 77."""
    padding = CONTEXT_LENGTH - 1 - len(ids)
    return torch.tensor([START_TOKEN, *ids] + [END_TOKEN] * padding, dtype=torch.int64)


def count_placeholders(captions: Sequence[str]) -> tuple[int, ...]:
    """How many placeholders the text encoder finds in each text caption."""
    return tuple((tokenize_text_captions(captions) == PLACEHOLDER_TOKEN).sum(dim=1).tolist())


class TextEncoder(nn.Module):
    """`cond_stage_model`. The tower is open_clip's; `anytext2.weights` maps the official names onto it."""

    def __init__(self, cfg: TextEncoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.tower = TextTransformer(
            context_length=CONTEXT_LENGTH,
            vocab_size=VOCABULARY_SIZE,
            width=cfg.width,
            heads=cfg.heads,
            layers=cfg.layers,
            output_dim=None,
            act_layer=QuickGELU,
            # The causal mask is passed in by `_encode`: as a buffer it would be lost by `to_empty`.
            no_causal_mask=True,
        )

    def encode_image_captions(
        self, captions: Sequence[str], stored_BKTD: Tensor | None = None, n_stored: Sequence[int] = ()
    ) -> Tensor:
        """[B, 77 K, D] of image captions. A `*` in them is an ordinary word.

        stored_BKTD: contexts that were made before, for the first n_stored[b] chunks of each caption (those it needs,
        or 0): only other captions are encoded, and an empty chunk, once, where a stored context is too short. The
        result is that of encoding everything, as far as what is stored is.
        """
        ids_BKT = tokenize_image_captions(captions, self.cfg.image_chunks)
        if stored_BKTD is not None:
            return self._completed(ids_BKT, stored_BKTD, n_stored).flatten(1, 2)
        return self.encode_chunks(ids_BKT.flatten(0, 1)).unflatten(0, ids_BKT.shape[:2]).flatten(1, 2)

    def _completed(self, ids_BKT: Tensor, stored_BKTD: Tensor, n_stored: Sequence[int]) -> Tensor:
        """[B, K, 77, D]: what is stored, and what is not."""
        n_chunks = ids_BKT.shape[1]
        dtype = self.tower.positional_embedding.dtype
        result_BKTD = stored_BKTD.new_zeros(*ids_BKT.shape, stored_BKTD.shape[3], dtype=dtype)
        known = min(n_chunks, stored_BKTD.shape[1])
        result_BKTD[:, :known] = stored_BKTD[:, :known].to(dtype)
        is_stored_BK = torch.arange(n_chunks) < torch.tensor(n_stored).reshape(-1, 1)
        if bool(is_stored_BK.all()):
            return result_BKTD
        # Chunks with the same tokens, above all the empty ones, are encoded once.
        ids_NT, place = torch.unique(ids_BKT[~is_stored_BK], dim=0, return_inverse=True)
        row, chunk = ((~is_stored_BK).nonzero(as_tuple=True)[axis].to(result_BKTD.device) for axis in (0, 1))
        return result_BKTD.index_put((row, chunk), self.encode_chunks(ids_NT)[place.to(result_BKTD.device)])

    def encode_chunks(self, ids_NT: Tensor) -> Tensor:
        """[N, 77, D] of token ids [N, 77]."""
        return self._encode(self.tower.token_embedding(ids_NT.to(self._device)))

    def encode_text_captions(
        self, captions: Sequence[str], lines_ND: Tensor, n_lines: Sequence[int], names: Sequence[str]
    ) -> Tensor:
        """[B, 77, D] of text captions, the k-th placeholder of a caption replaced by its sample's k-th line.

        Args:
            lines_ND: embeddings of all lines, sample by sample; differentiable. An empty caption takes none.
            n_lines: lines of each sample, with sum N.
            names: of the samples, for the error.
        Raises:
            ValueError: a caption has not as many placeholders as its sample has lines.
        """
        assert len(lines_ND) == sum(n_lines), (lines_ND.shape, n_lines)
        ids_BT = tokenize_text_captions(captions)
        sample, token = (ids_BT == PLACEHOLDER_TOKEN).nonzero(as_tuple=True)
        rows = _line_rows(captions, torch.bincount(sample, minlength=len(captions)).tolist(), n_lines, names)
        embedded = self.tower.token_embedding(ids_BT.to(self._device))
        if rows:
            chosen = lines_ND[torch.tensor(rows).to(lines_ND.device)].to(embedded.dtype)
            embedded = embedded.index_put((sample.to(embedded.device), token.to(embedded.device)), chosen)
        return self._encode(embedded)

    def _encode(self, embedded_BTD: Tensor) -> Tensor:
        """Position embeddings, causal transformer, final norm."""
        x = embedded_BTD + self.tower.positional_embedding
        mask = torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        return self.tower.ln_final(self.tower.transformer(x, attn_mask=mask))

    @property
    def _device(self) -> torch.device:
        return self.tower.positional_embedding.device


def _line_rows(
    captions: Sequence[str], n_placeholders: Sequence[int], n_lines: Sequence[int], names: Sequence[str]
) -> list[int]:
    """Rows of the packed line embeddings that the placeholders take, in order."""
    rows: list[int] = []
    start = 0
    for caption, found, wanted, name in zip(captions, n_placeholders, n_lines, names, strict=True):
        if caption and found != wanted:
            raise ValueError(
                f"{name}: text caption {caption!r} has {found} placeholders after tokenisation but the sample has "
                f"{wanted} lines; write each as ' * ' with spaces, within {CONTEXT_LENGTH - 2} tokens"
            )
        rows.extend(range(start, start + found))
        start += wanted
    return rows
