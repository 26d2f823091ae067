"""Translators are optional: what is missing is told in one line, and a stand-in for each package is called rightly."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from distill.inference.translate import make_translator


@pytest.mark.parametrize("name", ["", "google", "argos:zh", "marian", "command:", "command"])
def test_an_unknown_translator_is_told_with_those_there_are(name):
    with pytest.raises(ValueError, match="write argos, marian:FOLDER, or command:PROGRAM"):
        make_translator(name)


def test_a_package_that_is_missing_is_told_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "argostranslate", None)
    with pytest.raises(ValueError, match="pip install argostranslate"):
        make_translator("argos")("招牌")


def install_argos(monkeypatch: pytest.MonkeyPatch, *codes: str) -> None:
    """A stand-in for Argos Translate with packages from these languages to English."""

    def language(code: str) -> SimpleNamespace:
        pair = SimpleNamespace(translate=lambda text: f"{code}: {text}")
        return SimpleNamespace(code=code, get_translation=lambda to: pair if to.code == "en" and code != "en" else None)

    package, module = ModuleType("argostranslate"), ModuleType("argostranslate.translate")
    module.get_installed_languages = lambda: [language(code) for code in (*codes, "en")]  # type: ignore[attr-defined]
    package.translate = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "argostranslate", package)
    monkeypatch.setitem(sys.modules, "argostranslate.translate", module)


def test_argos_translates_from_the_language_of_the_text(monkeypatch):
    install_argos(monkeypatch, "zh", "ja")
    translate = make_translator("argos")
    assert translate("一块招牌") == "zh: 一块招牌" and translate("カフェの看板") == "ja: カフェの看板"
    with pytest.raises(ValueError, match="no package from ko to en is installed; argospm install translate-ko_en"):
        translate("간판")


def test_a_marian_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(ValueError, match="no model there"):
        make_translator(f"marian:{tmp_path}")("招牌")


def test_a_marian_model_is_called(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", transformers := ModuleType("transformers"))
    with pytest.raises(ValueError, match="pip install transformers sentencepiece"):
        make_translator(f"marian:{tmp_path}")("招牌")

    class Tokenizer:
        def __call__(self, texts, return_tensors, truncation):
            return {"input_ids": texts}

        def decode(self, tokens, skip_special_tokens):
            return f"English of {tokens}"

    class Model:
        def eval(self):
            return self

        def generate(self, input_ids):
            return input_ids

    def loads(made):
        return SimpleNamespace(from_pretrained=lambda folder, local_files_only: made)

    transformers.MarianTokenizer, transformers.MarianMTModel = loads(Tokenizer()), loads(Model())  # type: ignore
    assert make_translator(f"marian:{tmp_path}")("招牌") == "English of 招牌"


@pytest.mark.process
def test_a_program_translates_from_its_input_to_its_output():
    script = "import sys; sys.stdout.reconfigure(encoding='utf-8'); print('<' + sys.stdin.read() + '>')"
    assert make_translator(f'command:{sys.executable} -c "{script}"')("sign") == "<sign>"


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "told"),
    [("no-such-program-here", "No such file"), (f"{sys.executable} -c \"raise SystemExit('lost')\"", "code 1: lost")],
)
def test_a_program_that_fails_is_one_line(command, told):
    with pytest.raises(ValueError, match=told) as caught:
        make_translator(f"command:{command}")("sign")
    assert "\n" not in str(caught.value)
