"""The two captions of a sample."""

from __future__ import annotations

import numpy as np

from anytext2.data.captions import TEXT_PHRASES, fixed_image_caption, image_caption, text_caption
from anytext2.data.options import DatasetConfig


def test_text_caption_has_one_free_standing_placeholder_a_line() -> None:
    seen = set()
    for seed in range(60):
        caption = text_caption(3, np.random.default_rng(seed))
        phrase = caption.removesuffix("* , * , * . ")
        assert caption != phrase and "*" not in phrase
        seen.add(phrase)
    assert seen == set(TEXT_PHRASES)
    assert text_caption(1, np.random.default_rng(0)).endswith(" * . ")


def test_short_captions_only_get_a_full_stop() -> None:
    rng = np.random.default_rng(0)
    assert image_caption("a shop sign", 128, rng) == "a shop sign. "
    assert image_caption("", 128, rng) == ". "
    assert image_caption("one two three", 3, rng) == "one two three. "


def test_long_captions_keep_the_first_sentence_and_random_others() -> None:
    caption = "first it is. second a b. third c d. fourth e f"
    assert fixed_image_caption("one two three", 3) == "one two three. " and fixed_image_caption(caption, 7) is None
    results = {image_caption(caption, 7, np.random.default_rng(seed)) for seed in range(40)}
    assert len(results) > 2
    for result in results:
        assert result.startswith("first it is. ") and result.endswith(". ") and len(result.split()) == 7
    assert image_caption("a b c d e f. g h", 4, np.random.default_rng(0)) == "a b c d. "
    endless = image_caption("word " * 500, 200, np.random.default_rng(0))
    assert len(endless) == 500 and len(endless.split()) == 100


def test_captions_tell_of_watermarks_like_the_reference() -> None:
    assert not DatasetConfig().tells_watermarks and DatasetConfig(like_reference=True).tells_watermarks
    assert DatasetConfig(cap_watermark=True).tells_watermarks
    assert not DatasetConfig(like_reference=True, cap_watermark=False).tells_watermarks
