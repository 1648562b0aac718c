"""A tokenizer as labels need it: text without control tokens, and the control tokens by their names.

It is built from the files of a model folder with the `tokenizers` library alone, or from a tokenizer of transformers;
the ids are the same.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from engines.files import read_regular_text
from engines.json_text import read_object
from recipes.problems import OperatorError, printable

CHAT_TEMPLATE_FILE = "chat_template.jinja"
_CUT = "\ue000cut\ue000"
"""A token of the private copy. What follows it is tokenized as after a control token: not as a text's beginning."""
_SHORT_CHARACTERS, _KEPT_TEXTS = 32, 8192
"""Texts as short as the headers of turns come again and again: so many of them are tokenized once."""
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTED = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class Control:
    """A control token. `lstrip` and `rstrip`: it takes the blanks before it, and after it."""

    text: str
    id: int
    lstrip: bool = False
    rstrip: bool = False


class Encoded(msgspec.Struct, frozen=True):
    """Ids of a text, and for each where its text ends, in characters; no ends where they were not requested."""

    ids: list[int]
    ends: list[int]


class TokenizerView(Protocol):
    """What labels need of a tokenizer.

    Attributes:
        template: its chat template; empty without one.
        special: its special tokens by name, as a chat template sees them.
        controls: its control tokens by their texts.
        spelled: matches the text of each control token, the longest at each place.
        begin: the ids that it puts before a text of its own accord.
    """

    template: str
    special: Mapping[str, Any]
    controls: Mapping[str, Control]
    spelled: re.Pattern[str]
    begin: tuple[int, ...]

    @property
    def end(self) -> Control | None:
        """The token that ends a document."""
        ...

    @property
    def joins(self) -> bool:
        """Whether a text has other ids after a control token than in the middle of a text."""
        ...

    def encode(self, texts: Sequence[tuple[str, bool]], *, places: bool = True) -> list[Encoded]:
        """Ids of texts without any control token, whatever the texts spell.

        Args:
            texts: each with whether it begins a document.
            places: find out where the text of each id ends.
        """
        ...


class Vocabulary:
    """A `TokenizerView` over a tokenizer of the `tokenizers` library."""

    def __init__(self, backend: Any, special: Mapping[str, Any], template: str, *, copied: bool = True) -> None:
        """A view.

        Args:
            backend: a `tokenizers.Tokenizer`.
            special: the special tokens by name.
            template: the chat template.
            copied: work on a copy; otherwise the given tokenizer is changed.
        """
        from tokenizers import AddedToken, Tokenizer

        self.template = template
        self.special: Mapping[str, Any] = dict(special)
        whole = Tokenizer.from_str(backend.to_str()) if copied else backend
        whole.no_truncation()
        whole.no_padding()
        self.begin = _begin(whole)
        known = whole.get_added_tokens_decoder()
        self.controls: Mapping[str, Control] = {
            token.content: Control(token.content, number, token.lstrip, token.rstrip)
            for number, token in known.items()
            if token.special and token.content
        }
        self._short: dict[tuple[str, bool, bool], Encoded] = {}
        self._lock = threading.Lock()
        self._control_ids = {control.id for control in self.controls.values()}
        whole.encode_special_tokens = True
        whole.add_tokens([AddedToken(_CUT, special=False, normalized=False)])
        self._text = whole
        self.spelled = _any_of(self.controls)
        alone = self._encoded("a", False).ids
        self._joins = _plain(whole, "\na")[-len(alone) :] != alone

    @property
    def end(self) -> Control | None:
        """The token that ends a document."""
        return self.controls.get(str(self.special.get("eos_token") or ""))

    @property
    def joins(self) -> bool:
        """Whether a text has other ids after a control token than in the middle of a text."""
        return self._joins

    def encode(self, texts: Sequence[tuple[str, bool]], *, places: bool = True) -> list[Encoded]:
        """Ids of texts without any control token, whatever the texts spell; from any thread."""
        with self._lock:
            return self._encode_new(texts, places)

    def _encode_new(self, texts: Sequence[tuple[str, bool]], places: bool) -> list[Encoded]:
        if len(self._short) > _KEPT_TEXTS:
            self._short.clear()
        known = self._short
        new = list(dict.fromkeys(one for one in texts if (*one, places) not in known))
        given = [text if first else _CUT + text for text, first in new]
        encode = self._text.encode_batch if places else self._text.encode_batch_fast
        found: dict[tuple[str, bool], Encoded] = {}
        for one, encoding in zip(new, encode(given, add_special_tokens=False), strict=True):
            found[one] = self._checked(*one, _without_cut(encoding, one[1], places))
            if len(one[0]) <= _SHORT_CHARACTERS:
                known[(*one, places)] = found[one]
        return [found[one] if one in found else known[(*one, places)] for one in texts]

    def _encoded(self, text: str, first: bool) -> Encoded:
        given = text if first else _CUT + text
        return _without_cut(self._text.encode(given, add_special_tokens=False), first, True)

    def _checked(self, text: str, first: bool, found: Encoded) -> Encoded:
        """The ids, with control tokens that a vocabulary spells as ordinary pieces taken apart."""
        if self._control_ids.isdisjoint(found.ids):
            return found
        ids: list[int] = []
        ends: list[int] = []
        at = 0
        for place in [*(match.start() + 1 for match in self.spelled.finditer(text)), len(text)]:
            part = self._encoded(text[at:place], first and at == 0)
            ids += part.ids
            ends += [at + end for end in part.ends]
            at = place
        return Encoded(ids, ends)


def _without_cut(encoding: Any, first: bool, places: bool) -> Encoded:
    skipped, cut = (0, 0) if first else (1, len(_CUT))
    ends = [max(0, end - cut) for _, end in encoding.offsets[skipped:]] if places else []
    return Encoded(encoding.ids[skipped:], ends)


def _plain(backend: Any, text: str) -> list[int]:
    return list(backend.encode(text, add_special_tokens=False).ids)


def _begin(backend: Any) -> tuple[int, ...]:
    """The ids that a tokenizer puts before every text."""
    text = _plain(backend, "a")
    whole = list(backend.encode("a", add_special_tokens=True).ids)
    places = (at for at in range(len(whole)) if whole[at : at + len(text)] == text)
    return tuple(whole[: next(places, 0)])


def _any_of(texts: Mapping[str, Any]) -> re.Pattern[str]:
    """Matches each of the texts, the longest at each place; nothing without texts."""
    longest = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


def view_of(tokenizer: Any, template: str = "") -> Vocabulary:
    """The view of a transformers tokenizer.

    Args:
        tokenizer: with a fast backend.
        template: a chat template instead of its own.

    Raises:
        OperatorError: the tokenizer has no backend of the `tokenizers` library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise OperatorError(
            f"{type(tokenizer).__name__} is not a tokenizer of the tokenizers library, so its labels cannot be checked",
            "add tokenizer.json to the model's folder: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    return Vocabulary(backend, tokenizer.special_tokens_map, template or _own_template(tokenizer))


def _own_template(tokenizer: Any) -> str:
    try:
        return str(tokenizer.get_chat_template(None, None))
    except ValueError:
        return ""


def view_of_folder(folder: Path, template: str = "", marks: Sequence[str] = (), end: str = "") -> Vocabulary:
    """The view of the tokenizer in a model folder, from its files alone.

    Args:
        folder: with `tokenizer.json`.
        template: a chat template instead of its own.
        marks: control tokens that the template writes; missing ones are added, as a training adds them.
        end: the template's end token, which becomes the tokenizer's; empty for its own.

    Raises:
        OperatorError: a file is missing or damaged.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        backend = Tokenizer.from_str(read_regular_text(path))
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror or error}", "a model folder has a tokenizer.json") from error
    except Exception as error:  # the library raises plain Exception
        raise OperatorError(f"{path} is not a tokenizer: {printable(str(error), 200)}") from error
    special, listed = _special_tokens(folder)
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    backend.add_special_tokens(_added([text for text in (*special.values(), *listed, *marks) if text not in known]))
    special |= {"eos_token": end} if end else {}
    return Vocabulary(backend, special, template or template_in(folder), copied=False)


def template_in(folder: Path) -> str:
    """The chat template of a folder: its file, or in its settings the only one or the one named "default"."""
    file = folder / CHAT_TEMPLATE_FILE
    if file.is_file():
        return read_regular_text(file)
    settings = folder / "tokenizer_config.json"
    given = read_object(settings).get("chat_template") if settings.is_file() else None
    if isinstance(given, list):
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        given = named.get("default")
    return given if isinstance(given, str) else ""


def _special_tokens(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Special tokens of a folder's settings: those with a name, and the others."""
    special: dict[str, str] = {}
    listed: list[str] = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if not (folder / name).is_file():
            continue
        settings = read_object(folder / name)
        special |= {key: text for key in _NAMED if (text := _token_text(settings.get(key)))}
        for key in _LISTED:
            value = settings.get(key)
            if isinstance(value, dict):
                special |= {str(word): text for word, one in value.items() if (text := _token_text(one))}
            elif isinstance(value, list):
                listed += [text for one in value if (text := _token_text(one))]
    return special, listed


def _token_text(value: Any) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _added(texts: Sequence[str]) -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(text, special=True, normalized=False) for text in dict.fromkeys(texts)]
