"""Compares a GGUF file's vocabulary with the tokenizer's files, and its special tokens and chat templates by effect;
and the sampling settings that llama.cpp would take from the file with generation_config.json.

What a file leaves out has llama.cpp's default. What the model means by its files is what transformers does with them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.artifacts.generation_config import read_generation_config
from engines.chat.rendering import TemplateLimitError
from engines.llama.gguf_file import GgufFile
from engines.llama.vocab_rules import adds_begin, default_id, ends_by_name
from exporters.prompts.chat_format import chat_format
from exporters.prompts.effective_tokens import added_tokens, answer_ends
from exporters.proof.audit_vocab import audit_vocabulary, texts_of
from recipes.problems import printable

_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_NAMED_TEMPLATES, _SAMPLING = "tokenizer.chat_template.", "general.sampling."
_SAMPLING_NAMES = {"temp": ("temperature",), "penalty_repeat": ("penalty_repeat", "repetition_penalty")}
"""Names in generation_config.json of the settings that GGUF names otherwise, as gguf-py's metadata.py maps them."""
_END_PLACES = 3
_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


def audit_tokens(file: GgufFile, folder: Path, config: Mapping[str, Any], tokenizer: Any = None) -> list[str]:
    """Compare tokens, scores, merges, special ids and chat templates with the tokenizer's files.

    Args:
        file: the file.
        folder: the model's folder.
        config: its config.
        tokenizer: its tokenizer, if the caller has loaded it.
    """
    tokens = texts_of(file.keys.get("tokenizer.ggml.tokens"))
    findings = audit_vocabulary(file, folder, int(config["vocab_size"]))
    findings += _sampling(file, folder)
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(folder)
    if tokenizer is None:
        return [*findings, "the model's tokenizer cannot be loaded: special tokens and templates were not compared"]
    return (
        findings
        + _special(file, tokenizer, answer_ends(folder, config, tokenizer), tokens)
        + _templates(file, tokenizer)
    )


def _special(file: GgufFile, tokenizer: Any, ends: Sequence[int], tokens: list[bytes]) -> list[str]:
    """The special tokens by what a runtime does with them, compared with what transformers does."""
    added, findings = added_tokens(tokenizer), []
    for name, wanted, default in (
        ("bos", added.begin, adds_begin(str(file.scalar(_MODEL)), str(file.scalar(_PRE)))),
        ("eos", added.end, False),
    ):
        key = f"tokenizer.ggml.add_{name}_token"
        found = (_id_of(file, name),) if file.scalar(key, default) else ()
        if len(wanted) < 2 and found != wanted:
            what = [_names(ids, tokens) for ids in (found, wanted)]
            state = file.scalar(key, f"missing, which means {default}")
            findings.append(f"{key} is {state}: llama.cpp adds {what[0]} to a text, and transformers adds {what[1]}")
    for name, field in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk")):
        key, wanted_id = f"tokenizer.ggml.{name}_token_id", getattr(tokenizer, f"{field}_token_id", None)
        found_id = _id_of(file, name)
        allowed = {wanted_id, *added.begin} if name == "bos" else {wanted_id, *ends} if name == "eos" else {wanted_id}
        if wanted_id is not None and (found_id is not None or name in ("bos", "eos")) and found_id not in allowed:
            findings.append(
                f"{key} is {found_id} ({_names([found_id], tokens)}); {field}_token is {_names([wanted_id], tokens)}"
            )
    known = ends_by_name({text.decode(errors="replace") for text in tokens})
    places = {_id_of(file, name) for name in ("eos", "eot", "eom")}
    written = _turn_end(tokenizer)
    for name in ("eot", "eom"):
        token = _id_of(file, name)
        if token is not None and token not in (*ends, written) and _text_of(tokens, token) not in known:
            findings.append(
                f"tokenizer.ggml.{name}_token_id is {token} ({_names([token], tokens)}): an answer would end "
                "there, and does not in transformers"
            )
    missing = [
        token for token in ends if token not in places and _text_of(tokens, token) not in known and token < len(tokens)
    ]
    if missing and len(places - {None}) < _END_PLACES:  # no file can name more, and the export warns about the others
        findings.append(
            f"an answer does not end at {_names(missing, tokens)}, which ends it in transformers: "
            "tokenizer.ggml.eos_token_id, eot_token_id and eom_token_id name other tokens"
        )
    return findings


def _turn_end(tokenizer: Any) -> int | None:
    """The token that the chat template writes after an answer, on which a model is trained to end; None without one."""
    try:
        chat = chat_format(tokenizer)
    except TemplateLimitError:
        return None
    after = chat.after["assistant"] if chat is not None else ""
    return next((token for text, token in tokenizer.get_added_vocab().items() if after.startswith(text)), None)


def _id_of(file: GgufFile, name: str) -> int | None:
    """The id of a special token in effect; None without one."""
    found = file.scalar(f"tokenizer.ggml.{name}_token_id", default_id(str(file.scalar(_MODEL)), name))
    return found if isinstance(found, int) else None


def _text_of(tokens: list[bytes], token: int | None) -> str:
    inside = token is not None and 0 <= token < len(tokens)
    return tokens[token].decode(errors="replace") if inside and token is not None else "nothing"


def _names(ids: Sequence[int | None], tokens: list[bytes]) -> str:
    return ", ".join(repr(printable(_text_of(tokens, token), 40)) for token in ids) or "nothing"


def _templates(file: GgufFile, tokenizer: Any) -> list[str]:
    """The chat templates, as transformers reads them: the default one, and those with names."""
    given = getattr(tokenizer, "chat_template", None)
    wanted = given if isinstance(given, dict) else {"default": given} if given else {}
    findings, known = [], set()
    for name, template in wanted.items():
        shown = "".join(char if char.isascii() and char.isalnum() else "_" for char in name)
        key = "tokenizer.chat_template" + ("" if name == "default" else f".{shown}")
        known.add(key)
        written = file.scalar(key)
        if written not in _same_templates(template):
            findings.append(
                f"{printable(key, 80)} differs from the model's" if written else f"{printable(key, 80)} is missing"
            )
    if not wanted and file.scalar("tokenizer.chat_template"):
        findings.append("tokenizer.chat_template is set, but the model has none")
    others = [key for key in file.keys if key.startswith(_NAMED_TEMPLATES) and key not in known]
    return findings + [f"{printable(key, 80)} is set, but the model has no template of this name" for key in others]


def _sampling(file: GgufFile, folder: Path) -> list[str]:
    """The sampling settings of the file: llama.cpp's programs take them as their defaults."""
    settings, findings = read_generation_config(folder), []
    for key in (key for key in file.keys if key.startswith(_SAMPLING)):
        name = key.removeprefix(_SAMPLING)
        wanted = next(
            (settings[own] for own in _SAMPLING_NAMES.get(name, (name,)) if settings.get(own) is not None), None
        )
        written = file.scalar(key)
        if wanted is None:
            findings.append(f"{printable(key, 80)} is set, but generation_config.json does not set it")
        elif not _same_setting(written, wanted):
            findings.append(
                f"{printable(key, 80)} is {printable(str(written), 40)}; generation_config.json has"
                f" {printable(str(wanted), 40)}"
            )
    return findings


def _same_setting(written: Any, wanted: Any) -> bool:
    """Equal, or equal as GGUF's 32-bit numbers."""
    numbers = isinstance(written, int | float) and isinstance(wanted, int | float)
    return math.isclose(written, wanted, rel_tol=1e-6) if numbers else bool(written == wanted)


def _same_templates(template: str) -> set[str]:
    """Texts that render what the template renders: with its `generation` blocks, which mark text for training only,
    without their tags, or with blocks that are always taken."""
    taken = _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)
    return {template, _GENERATION.sub("", template), taken}


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer as transformers loads it; None if it cannot."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None
