"""Words for synthetic pictures: spelled with the tiny character set, in a case that the font can show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anytext2.glyphs.fonts import Font
from anytext2.synthetic import words

CHARSET = (Path(words.__file__).parents[1] / "configs" / "charset_tiny.txt").read_text("utf-8").split("\n")[:-1]


def test_charset_is_ascii_and_common_characters_each_once() -> None:
    assert len(CHARSET) == len(set(CHARSET)) and all(len(char) == 1 for char in CHARSET)
    assert set(map(chr, range(33, 127))) <= set(CHARSET) and 400 < sum(char > "\u2e80" for char in CHARSET) < 1200


def test_texts_stay_within_the_charset() -> None:
    rng = np.random.default_rng(0)
    texts = [words.latin_text(rng, Font(Path("x"))) for _ in range(2000)]
    texts += [words.chinese_text(rng) for _ in range(2000)]
    assert set("".join(texts)) <= set(CHARSET)
    assert {len(text) for text in texts[2000:]} == {1, 2, 3, 4}
    assert max(map(len, texts)) <= 8 and len(set(texts)) > 2000
    assert not {"一", "口", "人"} & set(texts), "alone, they look like strokes"


def test_case_follows_the_font() -> None:
    rng = np.random.default_rng(1)
    plain, capitals, script = (
        [text for _ in range(400) if (text := words.latin_text(rng, font)).isalpha()]
        for font in (Font(Path("x")), Font(Path("x"), capitals=True), Font(Path("x"), script=True))
    )
    assert any(map(str.isupper, plain)) and any(map(str.islower, plain)) and any(map(str.istitle, plain))
    assert all(map(str.isupper, capitals)) and not any(map(str.isupper, script))
