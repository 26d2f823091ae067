"""The language of a text without one."""

from __future__ import annotations

import pytest

from anytext2.glyphs.languages import infer_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Straße 7", "Latin"),
        ("2024", "Latin"),
        ("…", "Latin"),
        ("欢迎光临", "Chinese"),
        ("ラーメン屋", "Japanese"),
        ("日本国の憲法", "Japanese"),
        ("ﾗｰﾒﾝ", "Japanese"),
        ("大韓民國 만세", "Korean"),
        ("안녕", "Korean"),
        ("مرحبا", "Arabic"),
        ("नमस्ते", "Hindi"),
        ("বাংলা", "Bangla"),
        ("Привет", "Cyrillic"),
        ("สวัสดี", "Thai"),
        ("ＡＢＣ", "Latin"),
        ("OPEN 营业中间", "Latin"),
    ],
)
def test_the_language_is_inferred_from_the_script(text: str, language: str) -> None:
    assert infer_language(text) == language
