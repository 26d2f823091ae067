"""Annotation files that are not UTF-8: one line says which encoding they seem to have, and what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from anytext2.data.annotations import load_records

LONG = 40  # items, so that decoding fails far behind the beginning


def _json(text: str, items: int = 2, ascii_items: int = 0) -> str:
    line = {"polygon": [[0, 0], [50, 0], [50, 20]], "text": text, "language": "Latin"}
    plain = [{"img_name": "a.png", "annotations": [{**line, "text": "plain"}]}] * ascii_items
    rows = plain + [{"img_name": f"{text}.png", "annotations": [line]}] * items
    return json.dumps({"data_root": "imgs", "data_list": rows}, ensure_ascii=False, indent=1)


def _error(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_records(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig"])
def test_utf8_with_or_without_mark_is_read(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(_json("招牌 Café").encode(codec))
    records, _ = load_records(path)
    assert records[0].lines[0].text == "招牌 Café"


@pytest.mark.parametrize(
    ("codec", "mark", "name"),
    [
        ("utf-16-le", b"\xff\xfe", "UTF-16 LE"),
        ("utf-16-be", b"\xfe\xff", "UTF-16 BE"),
        ("utf-32-le", b"\xff\xfe\0\0", "UTF-32 LE"),
        ("utf-32-be", b"\0\0\xfe\xff", "UTF-32 BE"),
    ],
)
@pytest.mark.parametrize("text", ["OPEN", "招牌"])
def test_wide_encodings_are_known_by_their_mark_or_their_zeros(
    tmp_path: Path, codec: str, mark: bytes, name: str, text: str
) -> None:
    for start in (mark, b""):
        message = _error(tmp_path / "data.json", start + _json(text).encode(codec))
        assert message == f"not UTF-8, it looks like {name}; save the file as UTF-8"


@pytest.mark.parametrize(
    ("codec", "text", "name"),
    [
        ("gbk", "小心地滑", "GBK (GB18030)"),
        ("gb18030", "欢迎光临 𠀀", "GBK (GB18030)"),
        ("big5", "歡迎光臨", "Big5"),
        ("big5", "小心地滑", "Big5"),
        ("cp932", "いらっしゃいませ", "Shift_JIS"),
        ("cp932", "東京駅", "Shift_JIS"),
        ("cp1252", "Größe", "Windows-1252"),
        ("cp1252", "Café “Zoé”", "Windows-1252"),
        ("cp949", "안녕하세요 서울", "EUC-KR"),
        ("euc_jp", "東京駅へようこそ", "EUC-JP"),
        ("cp1251", "Открыто", "Windows-1251"),
    ],
)
@pytest.mark.parametrize("ascii_items", [0, LONG])
def test_narrow_encodings_are_tried(tmp_path: Path, codec: str, text: str, name: str, ascii_items: int) -> None:
    message = _error(tmp_path / "data.json", _json(text, ascii_items=ascii_items).encode(codec))
    assert message == f"not UTF-8, it looks like {name}; save the file as UTF-8"


def test_an_encoding_in_ascii_bytes_is_found_at_the_beginning_of_a_file(tmp_path: Path) -> None:
    """Its bytes are valid UTF-8, so that only its marks tell."""
    message = _error(tmp_path / "data.json", _json("東京").encode("iso2022_jp"))
    assert message == "not UTF-8, it looks like ISO-2022-JP; save the file as UTF-8"


def test_a_damaged_utf8_file_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    content = _json("日本語の看板です").encode()
    at = content.index("語".encode())
    message = _error(tmp_path / "data.json", content[:at] + b"\xff" + content[at:])
    assert message == "not UTF-8, it looks like UTF-8 with damaged characters; save the file as UTF-8"
    cut = _error(tmp_path / "data.json", content[: content.index("です".encode()) + 1])
    assert cut == "the file ends within a character; a part of it seems to be missing"
    assert _error(tmp_path / "data.json", content[:-2]).startswith("not JSON (line ")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(_json("OPEN").encode()), "gzip file"),
        (b"PK\x03\x04\xff\xff", "ZIP archive"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff", "PNG"),
        (b"<html>\xe9</html>", "HTML page"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    assert _error(tmp_path / "data.json", content).startswith(f"expected a JSON text, this is: {what}")
