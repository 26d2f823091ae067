"""Offline translators for descriptions that are not English. Their packages are imported when they are first used.

Nothing is downloaded: the user has installed the package and its model.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import anytext2  # noqa: F401  (its torchvision hook comes before transformers)
from anytext2.glyphs.languages import infer_language

Translator = Callable[[str], str]

_FORMS = "argos, marian:FOLDER, or command:PROGRAM, which reads the text and writes its English"
_CODES = {"Chinese": "zh", "Japanese": "ja", "Korean": "ko", "Arabic": "ar", "Hindi": "hi", "Bangla": "bn"}
_COMMAND_SECONDS = 120


def make_translator(name: str) -> Translator:
    """The translator of a name: `argos`, `marian:FOLDER` or `command:PROGRAM`.

    The translator raises ValueError, in one line, where its package or model is missing.
    """
    kind, _, value = name.partition(":")
    if kind == "argos" and not value:
        return translate_with_argos
    if kind == "marian" and value:
        return lambda text: translate_with_marian(text, Path(value))
    if kind == "command" and value.strip():
        return lambda text: translate_with_command(text, value)
    raise ValueError(f"translate: {name!r} is not known; write {_FORMS}")


def translate_with_argos(text: str) -> str:
    """The English of a text by Argos Translate and an installed package for its language."""
    try:
        from argostranslate import translate
    except ImportError as error:
        raise ValueError("translate=argos: Argos Translate is not installed; pip install argostranslate") from error
    code = _CODES.get(infer_language(text), "zh")
    languages = {language.code: language for language in translate.get_installed_languages()}
    pair = languages[code].get_translation(languages["en"]) if {code, "en"} <= languages.keys() else None
    if pair is None:
        raise ValueError(
            f"translate=argos: no package from {code} to en is installed; argospm install translate-{code}_en"
        )
    return str(pair.translate(text))


def translate_with_marian(text: str, folder: Path) -> str:
    """The English of a text by a Marian model in a folder, such as a copy of Helsinki-NLP/opus-mt-zh-en."""
    tokenizer, model = _load_marian(folder)
    tokens = model.generate(**tokenizer([text], return_tensors="pt", truncation=True))
    return str(tokenizer.decode(tokens[0], skip_special_tokens=True))


@lru_cache(maxsize=1)
def _load_marian(folder: Path) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        raise ValueError(f"translate=marian:{folder}: no model there; a folder with config.json, weights and *.spm")
    try:
        from transformers import MarianMTModel, MarianTokenizer

        tokenizer = MarianTokenizer.from_pretrained(folder, local_files_only=True)
        return tokenizer, MarianMTModel.from_pretrained(folder, local_files_only=True).eval()
    except ImportError as error:
        raise ValueError(
            "translate=marian: needs two packages; pip install transformers sentencepiece "
            f"({str(error).strip().splitlines()[0][:120]})"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"translate=marian:{folder}: {str(error).strip().splitlines()[0][:160]}") from error


def translate_with_command(text: str, command: str) -> str:
    """What a program writes to its output when it reads the text from its input, both in UTF-8."""
    try:
        done = subprocess.run(
            shlex.split(command),
            input=text,
            capture_output=True,
            encoding="utf-8",
            timeout=_COMMAND_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"translate=command:{command}: exit code {error.returncode}: {last[:160]}") from error
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"translate=command:{command}: {' '.join(str(error).split())}") from error
    return done.stdout.strip()
