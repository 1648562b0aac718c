"""Compares the tokenizer that transformers builds with tokenizer.json.

tokenizer_config.json names a class, and some classes build a pre-tokenizer of their own instead of the one in
tokenizer.json. The model was trained with one of the two; training and export must not use the other.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engines.data.hard_strings import HARD_STRINGS, ORDINARY
from engines.json_text import read_object
from recipes.problems import OperatorError, printable

GENERIC = "PreTrainedTokenizerFast"
"""The class that uses tokenizer.json unchanged."""
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_SHOWN_IDS = 8


def check_tokenizer_class(folder: Path, tokenizer: Any, *, exact: bool = False) -> list[str]:
    """Refuse a tokenizer that gives ordinary text other ids than tokenizer.json does.

    Args:
        folder: the folder that it was loaded from; without tokenizer.json there is nothing to compare.
        tokenizer: as `AutoTokenizer` loads it.
        exact: refuse a byte-level tokenizer for unusual texts too, because a GGUF file could not have its ids; except
            for those that the class only brings into a Unicode normal form.

    Returns:
        A warning if only unusual texts get other ids; it names the class and how to fix it.

    Raises:
        OperatorError: ordinary texts do; the message names the class, and the hint how to fix it.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return []
    try:
        whole = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise OperatorError(f"{path} is not a tokenizer: {printable(str(error), 200)}") from error
    whole.no_truncation()
    whole.no_padding()
    counted = HARD_STRINGS if exact and "ByteLevel" in str(whole.pre_tokenizer) else ()
    wrong = [
        text
        for text in (*ORDINARY, *(text for text in counted if not _only_normalizes(tokenizer, whole, text)))
        if _ids(tokenizer, text) != whole.encode(text, add_special_tokens=False).ids
    ]
    name = type(tokenizer).__name__
    where = f"{folder / 'tokenizer_config.json'}: tokenizer_class — with {name}, transformers"
    if wrong:
        found, wanted = _ids(tokenizer, wrong[0]), whole.encode(wrong[0], add_special_tokens=False).ids
        raise OperatorError(
            f"{where} does not follow tokenizer.json: {printable(wrong[0], 40)!r} has {len(found)} tokens "
            f"({_shown(found)}), and {len(wanted)} by tokenizer.json ({_shown(wanted)})",
            _fix(folder, whole, name),
        )
    unusual = [t for t in HARD_STRINGS if _ids(tokenizer, t) != whole.encode(t, add_special_tokens=False).ids]
    if not unusual:
        return []
    return [
        f"{where} gives {len(unusual)} of {len(HARD_STRINGS)} unusual texts other token ids than tokenizer.json does, "
        f"{printable(unusual[0], 40)!r} for example; {_fix(folder, whole, name)}"
    ]


def pieces_differ(folder: Path, tokenizer: Any) -> OperatorError | None:
    """What is wrong if transformers gives ordinary text other ids than tokenizer.model does, in a folder without
    tokenizer.json; None if nothing is.

    transformers has its own rules for such a file, by the class that tokenizer_config.json names: blanks at the
    beginning, normalization and pieces that users defined are often others. Tokens of the one are noise to the other.
    """
    path = folder / "tokenizer.model"
    if (folder / "tokenizer.json").is_file() or not path.is_file():
        return None
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(path))
    wrong = next((text for text in ORDINARY if _ids(tokenizer, text) != pieces.encode(text)), None)
    if wrong is None:
        return None
    found, wanted = _ids(tokenizer, wrong), pieces.encode(wrong)
    return OperatorError(
        f"{path} — transformers ({type(tokenizer).__name__}) does not follow it: {printable(wrong, 40)!r} has "
        f"{len(found)} tokens ({_shown(found)}), and {len(wanted)} by the file ({_shown(wanted)}), so a model of these "
        "tokens would read and write noise there",
        "write tokenizer.json first, and prepare the tokens with it: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )


def _only_normalizes(tokenizer: Any, whole: Tokenizer, text: str) -> bool:
    """Whether the class gives a text the ids that tokenizer.json gives its Unicode normal form.

    llama.cpp normalizes no text, whichever of the two is right, so a file is not wrong by it.
    """
    forms = (unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD"))
    return any(_ids(tokenizer, text) == whole.encode(form, add_special_tokens=False).ids for form in forms)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _shown(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:_SHOWN_IDS])) + (", …" if len(ids) > _SHOWN_IDS else "")


def _fix(folder: Path, whole: Tokenizer, name: str) -> str:
    """How to get the ids of tokenizer.json; tried on a copy first, because some model types choose the class."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for file in _FILES:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, copy / file)
        settings = read_object(copy / "tokenizer_config.json") if (copy / "tokenizer_config.json").is_file() else {}
        (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": GENERIC}))
        try:
            other = AutoTokenizer.from_pretrained(copy, local_files_only=True)
            works = all(
                _ids(other, text) == whole.encode(text, add_special_tokens=False).ids
                for text in (*ORDINARY, *HARD_STRINGS)
            )
        except (OSError, ValueError, KeyError, TypeError):
            works = False
    if works:
        return f'if tokenizer.json is right, set "tokenizer_class": "{GENERIC}" in tokenizer_config.json'
    return (
        f"if {name} is right, let it write its own tokenizer.json: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )
