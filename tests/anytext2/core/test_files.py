"""Files that are written whole or not at all, and files that were named as weights and are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anytext2.core.files import not_weights, whole_file
from anytext2.core.resources import resource, shell_command
from anytext2.model.weights import TINY_WEIGHTS, read_state_dict, tensor_names


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_file_appears_when_it_is_whole(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    with pytest.raises(error), whole_file(path) as hidden:
        hidden.write_text("ne")
        assert path.read_text() == "old" and hidden.suffix == ".png"
        raise error
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.png", "old")]
    with whole_file(path) as hidden:
        hidden.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.png", "new")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Git LFS pointer"),
        ("w.ckpt", b"\xef\xbb\xbf\r\n<!DOCTYPE html>\n<title>Sign in</title>", "an HTML page"),
        ("w.ckpt", b"<html>" + "\u00e9".encode() * 300, "an HTML page"),
        ("w.safetensors", b"hello\nworld\n", ": text"),
        ("w.pt", b'{"error": "Access to model is restricted"}', ": text"),
        ("w.ckpt", b"", "an empty file"),
        ("w.safetensors", b"GGUF\x03\0\0\0", "a GGUF file"),
        ("w.safetensors", b"PK\x03\x04" + bytes(40), "a torch file; give it the suffix .ckpt"),
        ("w.ckpt", TINY_WEIGHTS.read_bytes()[:2000], "a safetensors file; give it the suffix .safetensors"),
    ],
)
def test_what_is_no_weights_file_is_named_with_a_remedy(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_state_dict, tensor_names):
        with pytest.raises(ValueError, match="not a readable weights file: ") as caught:
            read(path)
        assert words in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_and_real_weights(tmp_path: Path) -> None:
    assert "a folder; name the weights file in it" in not_weights(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.ckpt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert [not_weights(path) for path in (tmp_path / "w.ckpt", tmp_path / "old.pt", TINY_WEIGHTS)] == ["", "", ""]


def test_a_command_is_a_line_for_the_shell_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(resource("launch").parent)
    line = shell_command("launch/infer.py", "--out", Path("my pictures"), "a=[b c]")
    assert line.split()[1] == "launch/infer.py" and line.endswith("--out 'my pictures' 'a=[b c]'")
