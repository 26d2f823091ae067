"""The CLIP text encoder (Radford et al. 2021) and AnyText2's two uses of it.

Image captions are the UNet's context. They are split into chunks of 75 tokens, which are encoded separately and
concatenated. Text captions are the WriteNet's context. They have one chunk, in which each placeholder `*` is replaced
by the embedding of a line of text.

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

from anytext2.core.batch import Contexts
from anytext2.core.transfer import to_device

VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77
"""Tokens of a chunk: START_TOKEN, 75 tokens, END_TOKEN."""
START_TOKEN = 49406
END_TOKEN = 49407
"""Ends a caption and pads it. Stable Diffusion and AnyText2 pad with this token, open_clip with 0."""
PLACEHOLDER_TOKEN = 265
"""A `*` between spaces. Next to punctuation (`*,` `*.` `**`) it is another token and not a placeholder."""


@dataclass(frozen=True)
class TextEncoderConfig:
    """Size of the text tower; the defaults are CLIP ViT-L/14's.

    image_chunks: number of chunks of each image caption; longer captions are cut. 0: as many as the longest caption of
    the batch needs, as in official AnyText2; a caption's context then depends on the batch.
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
    """CLIP's byte-pair tokenizer, with the vocabulary of open_clip."""
    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


@lru_cache(maxsize=4096)
def _token_ids(caption: str) -> tuple[int, ...]:
    return tuple(clip_tokenizer().encode(caption))


def tokenize_text_captions(captions: Sequence[str]) -> Tensor:
    """Token ids int64 [B, 77] of text captions; longer captions are cut."""
    return torch.tensor([_make_chunk(_token_ids(caption)[: CONTEXT_LENGTH - 2]) for caption in captions])


def tokenize_image_captions(captions: Sequence[str], n_chunks: int = 0) -> Tensor:
    """Token ids int64 [B, K, 77] of image captions. K is `n_chunks`; 0: as many as the longest caption needs."""
    length = CONTEXT_LENGTH - 2
    rows = [_token_ids(caption) for caption in captions]
    n_chunks = n_chunks or max(1, -(-max(map(len, rows)) // length))
    return torch.tensor([[_make_chunk(row[k * length : (k + 1) * length]) for k in range(n_chunks)] for row in rows])


def _make_chunk(ids: Sequence[int]) -> list[int]:
    """START_TOKEN, at most 75 ids and END_TOKEN up to the length of 77."""
    return [START_TOKEN, *ids] + [END_TOKEN] * (CONTEXT_LENGTH - 1 - len(ids))


def count_placeholders(captions: Sequence[str]) -> tuple[int, ...]:
    """Number of placeholders that the text encoder finds in each text caption."""
    return tuple((tokenize_text_captions(captions) == PLACEHOLDER_TOKEN).sum(dim=1).tolist())


class TextEncoder(nn.Module):
    """AnyText2's `cond_stage_model`. Its tower is open_clip's; `anytext2.model.weights` maps the official names."""

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
            # `_encode` passes the causal mask, because `to_empty` would not initialise a buffer.
            no_causal_mask=True,
        )

    def encode_image_captions(
        self, captions: Sequence[str], stored_BKTD: Tensor | None = None, n_stored: Sequence[int] = ()
    ) -> Tensor:
        """Contexts [B, 77 K, D] of image captions. A `*` in them is an ordinary token.

        stored_BKTD, n_stored: cached contexts of the first n_stored[b] chunks of each caption: all that the caption
            needs, or 0. Only the other chunks are encoded: those of captions without a cached context, and the empty
            chunks after a shorter caption.
        """
        ids_BKT = tokenize_image_captions(captions, self.cfg.image_chunks)
        if stored_BKTD is not None:
            return self._encode_missing_chunks(ids_BKT, stored_BKTD, n_stored).flatten(1, 2)
        return self.encode_chunks(ids_BKT.flatten(0, 1)).unflatten(0, ids_BKT.shape[:2]).flatten(1, 2)

    def _encode_missing_chunks(self, ids_BKT: Tensor, stored_BKTD: Tensor, n_stored: Sequence[int]) -> Tensor:
        """[B, K, 77, D]: the stored chunks, and the encoded others."""
        n_chunks = ids_BKT.shape[1]
        dtype = self.tower.positional_embedding.dtype
        result_BKTD = stored_BKTD.new_zeros(*ids_BKT.shape, stored_BKTD.shape[3], dtype=dtype)
        n_copied = min(n_chunks, stored_BKTD.shape[1])
        result_BKTD[:, :n_copied] = stored_BKTD[:, :n_copied].to(dtype)
        is_stored_BK = torch.arange(n_chunks) < torch.tensor(n_stored).reshape(-1, 1)
        if bool(is_stored_BK.all()):
            return result_BKTD
        # Chunks with the same tokens, such as empty ones, are encoded once.
        ids_NT, position = torch.unique(ids_BKT[~is_stored_BK], dim=0, return_inverse=True)
        row, chunk = (~is_stored_BK).nonzero(as_tuple=True)
        row, chunk, position = to_device(torch.stack([row, chunk, position]), result_BKTD.device)
        return result_BKTD.index_put((row, chunk), self.encode_chunks(ids_NT)[position])

    def encode_chunks(self, ids_NT: Tensor) -> Tensor:
        """Contexts [N, 77, D] of chunks with token ids int64 [N, 77]."""
        return self._encode(self.tower.token_embedding(to_device(ids_NT, self._device)))

    def encode_text_captions(
        self, captions: Sequence[str], lines_ND: Tensor, n_lines: Sequence[int], names: Sequence[str]
    ) -> Tensor:
        """Contexts [B, 77, D] of text captions; arguments and errors as in `embed_text_captions`."""
        return self._encode(self.embed_text_captions(captions, lines_ND, n_lines, names))

    def encode_both(
        self,
        image_captions: Sequence[str],
        text_captions: Sequence[str],
        lines_ND: Tensor,
        n_lines: Sequence[int],
        names: Sequence[str],
    ) -> Contexts:
        """Contexts of image captions and text captions, by one call of the tower."""
        ids_BKT = tokenize_image_captions(image_captions, self.cfg.image_chunks)
        image_NTD = self.tower.token_embedding(to_device(ids_BKT.flatten(0, 1), self._device))
        text_BTD = self.embed_text_captions(text_captions, lines_ND, n_lines, names)
        encoded = self._encode(torch.cat([image_NTD, text_BTD]))
        image, text = encoded.split([len(image_NTD), len(text_BTD)])
        return Contexts(image.unflatten(0, ids_BKT.shape[:2]).flatten(1, 2), text)

    def embed_text_captions(
        self, captions: Sequence[str], lines_ND: Tensor, n_lines: Sequence[int], names: Sequence[str]
    ) -> Tensor:
        """Token embeddings [B, 77, D]; the k-th placeholder is replaced by its sample's k-th line embedding.

        Args:
            captions: one for each sample. An empty caption uses none of its sample's lines.
            lines_ND: line embeddings, sample by sample. The contexts are differentiable in them.
            n_lines: number of lines of each sample; their sum is N.
            names: names of the samples, for the error message.
        Raises:
            ValueError: the number of placeholders of a caption is not its sample's number of lines.
        """
        assert len(lines_ND) == sum(n_lines), (lines_ND.shape, n_lines)
        chunks = [_make_chunk(_token_ids(caption)[: CONTEXT_LENGTH - 2]) for caption in captions]
        found = [[token for token, id_ in enumerate(chunk) if id_ == PLACEHOLDER_TOKEN] for chunk in chunks]
        rows = _placeholder_rows(captions, [len(tokens) for tokens in found], n_lines, names)
        embedded = self.tower.token_embedding(to_device(torch.tensor(chunks), self._device))
        if rows:
            samples = [sample for sample, tokens in enumerate(found) for _ in tokens]
            places = torch.tensor([samples, [token for tokens in found for token in tokens], rows])
            sample, token, row = to_device(places, embedded.device)
            embedded = embedded.index_put((sample, token), lines_ND[row].to(embedded.dtype))
        return embedded

    def _encode(self, embedded_BTD: Tensor) -> Tensor:
        """The tower after the token embedding: position embeddings, causal transformer, final norm."""
        x = embedded_BTD + self.tower.positional_embedding
        mask = torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        return self.tower.ln_final(self.tower.transformer(x, attn_mask=mask))

    @property
    def _device(self) -> torch.device:
        return self.tower.positional_embedding.device


def _placeholder_rows(
    captions: Sequence[str], n_placeholders: Sequence[int], n_lines: Sequence[int], names: Sequence[str]
) -> list[int]:
    """The rows of lines_ND that replace the placeholders, in order; see `encode_text_captions`."""
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
