"""Special tokens by what they do in transformers: begin and end of every text, and the ends of an answer."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engines.artifacts.generation_config import end_ids, read_generation_config
from engines.chat.rendering import TemplateLimitError, TemplateRefusedError
from engines.llama.vocab_rules import ends_by_name
from exporters.hf_model.chat_templates import DEFAULT
from exporters.hf_model.turn_end import end_of_turn, named_tokens
from recipes.problems import OperatorError, printable

KEYS = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"}
"""GGUF's names of the special tokens: `tokenizer.ggml.NAME_token_id`."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What a model folder says about its tokenizer.

    Attributes:
        tokenizer: tokenizer.json; empty without one.
        settings: tokenizer_config.json; empty without one.
        templates: the chat templates by name.
        tokens: every token by its id.
        controls: ids of the control tokens.
        own: ids of special tokens that the vocabulary itself names.
    """

    tokenizer: Mapping[str, Any]
    settings: Mapping[str, Any]
    templates: Mapping[str, str]
    tokens: list[bytes]
    controls: list[int]
    own: Mapping[str, int]

    def text(self, token: int) -> str:
        """A token as text."""
        return self.tokens[token].decode(errors="replace")

    @functools.cached_property
    def places(self) -> dict[bytes, int]:
        """The first id of each token."""
        return {text: index for index, text in reversed(list(enumerate(self.tokens)))}


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens of a model.

    Attributes:
        ids: by name, as in `KEYS`.
        add_bos: whether `bos` is put before every text.
        add_eos: whether `eos` is put after every text.
        ends: every token that ends an answer.
        unplaced: those of them that the file cannot name.
        warnings: what llama.cpp cannot do as transformers does.
    """

    ids: dict[str, int]
    add_bos: bool
    add_eos: bool
    ends: list[int]
    unplaced: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


_ENDS_OF_A_TURN = ("<|im_end|>", "<|eot_id|>")
"""Names that are taken for the end of a turn in a model whose chat template does not say it."""


def read_special_tokens(folder: Path, files: TokenizerFiles, config: Mapping[str, Any]) -> SpecialTokens:
    """Read what transformers does with a model's special tokens.

    Args:
        folder: the model's folder.
        files: its tokenizer.
        config: the model's settings.

    Raises:
        OperatorError: tokenizer.json has a post-processor that cannot be read.
    """
    ids, warnings = _named_ids(files, config), []
    begin, end = _added(folder, files, ids)
    ends = [ids["eos"]] if "eos" in ids else []
    if begin:
        ids["bos"] = begin[0]
    if end:
        ids["eos"] = end[-1]
    if len(begin) > 1 or len(end) > 1:
        warnings.append(
            f"the tokenizer puts {len(begin)} tokens before a text and {len(end)} after it; llama.cpp puts one at most"
        )
    turn = _end_of_turn(files, warnings)
    listed = [token for token in end_ids(read_generation_config(folder)) + end_ids(config) if token < len(files.tokens)]
    ends = list(dict.fromkeys([*ends, *end[-1:], *listed, *([turn] if turn is not None else [])]))
    unplaced = _place_ends(ids, ends, turn, files)
    if unplaced:
        names = ", ".join(printable(files.text(token), 40) for token in unplaced)
        warnings.append(f"llama.cpp does not end an answer at {names}: a file has places for three end tokens")
    return SpecialTokens(ids, bool(begin), bool(end), ends, unplaced, warnings)


def _named_ids(files: TokenizerFiles, config: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the special tokens, from tokenizer_config.json by name, else the vocabulary itself, else config.json."""
    found = dict(files.own)
    for name in ("bos", "eos", "unk", "pad"):
        value = files.settings.get(f"{name}_token")
        text = value.get("content") if isinstance(value, dict) else value
        index = config.get(f"{name}_token_id")
        index = index[0] if isinstance(index, list) and index else index
        if isinstance(text, str) and text.encode(errors="replace") in files.places:
            found[name] = files.places[text.encode(errors="replace")]
        elif name not in found and isinstance(index, int) and 0 <= index < len(files.tokens):
            found[name] = index
    return found


def _added(folder: Path, files: TokenizerFiles, ids: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Ids that encoding puts before and after a text.

    tokenizer.json's post-processor decides; the settings add_bos_token and add_eos_token count without tokenizer.json
    only, because transformers 5 ignores them beside it.
    """
    if not files.tokenizer:
        flags = {name: bool(files.settings.get(f"add_{name}_token", False)) and name in ids for name in ("bos", "eos")}
        return ([ids["bos"]] if flags["bos"] else []), ([ids["eos"]] if flags["eos"] else [])
    processor = files.tokenizer.get("post_processor")
    if processor is None:
        return [], []
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    try:
        encoding = Tokenizer.from_str(json.dumps({"model": model, "post_processor": processor})).encode("a")
    except Exception as error:  # the library raises plain Exception
        raise OperatorError(
            f"{folder / 'tokenizer.json'}: post_processor cannot be read: {printable(str(error), 200)}"
        ) from error
    place = encoding.special_tokens_mask.index(0)
    begin, end = encoding.ids[:place], encoding.ids[place + 1 :]
    outside = [token for token in begin + end if token >= len(files.tokens)]
    if outside:
        raise OperatorError(
            f"{folder / 'tokenizer.json'}: post_processor — got token {outside[0]}; allowed below {len(files.tokens)}"
        )
    return begin, end


def _end_of_turn(files: TokenizerFiles, warnings: list[str]) -> int | None:
    """The token that the default chat template writes after an answer."""
    names = {f"{name}_token": files.text(index) for name, index in files.own.items()}
    controls = {files.text(index): index for index in files.controls}
    try:
        found = end_of_turn(files.templates, {**names, **named_tokens(files.settings)}, controls)
        if found is not None or DEFAULT in files.templates:
            return found
    except TemplateLimitError as error:
        warnings.append(error.message)
    except TemplateRefusedError:
        pass
    return next((files.places[name.encode()] for name in _ENDS_OF_A_TURN if name.encode() in files.places), None)


def _place_ends(ids: dict[str, int], ends: list[int], turn: int | None, files: TokenizerFiles) -> list[int]:
    """Name the end tokens in the places that a file has, eos, eot and eom, and return those without a place.

    llama.cpp ends an answer at some other tokens too, because of their names.
    """
    known = ends_by_name([text.decode(errors="replace") for text in files.places])
    if turn is not None:
        ids["eot"] = turn
    left = [token for token in ends if token not in (ids.get("eos"), turn) and files.text(token) not in known]
    for name in ("eot", "eom"):
        if left and name not in ids:
            ids[name] = left.pop(0)
    return left
