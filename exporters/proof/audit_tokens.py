"""Compares the vocabulary of a GGUF file with the tokenizer's files: the pieces, the special tokens, the template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.files import read_regular_text
from engines.json_text import read_json
from engines.llama.gguf_file import GgufFile
from exporters.proof.audit_vocab import audit_vocabulary, texts_of
from recipes.problems import printable

_BEGINS = frozenset(
    {
        "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
        "tekken", "chameleon",
    }
)  # fmt: skip
"""Pre-tokenizers with which llama.cpp adds the begin token unless the file says otherwise."""
_DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unk": 0}, "gpt2": {"bos": 11, "eos": 11}}
"""Special tokens of files that name none, by `tokenizer.ggml.model`."""
_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


def audit_tokens(file: GgufFile, folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Compare tokens, scores, merges, special ids and chat template with the tokenizer's files."""
    tokens = texts_of(file.keys.get("tokenizer.ggml.tokens"))
    findings = audit_vocabulary(file, folder, int(config["vocab_size"]))
    return findings + _special(file, folder, tokens) + _template(file, folder)


def effective_id(file: GgufFile, name: str) -> int | None:
    """The id that a runtime uses as a special token: the file's, or llama.cpp's default; None without one.

    Args:
        file: the file.
        name: bos, eos, pad, unk, eot, ….
    """
    key = {"unk": "unknown", "pad": "padding"}.get(name, name)
    given = file.scalar(f"tokenizer.ggml.{key}_token_id")
    defaults = _DEFAULT_IDS.get(str(file.scalar("tokenizer.ggml.model")), {})
    return given if isinstance(given, int) else defaults.get(name)


def effective_flag(file: GgufFile, name: str) -> bool:
    """Whether a runtime adds the begin or end token: the file's flag, or llama.cpp's default.

    Args:
        file: the file.
        name: add_bos_token or add_eos_token.
    """
    given = file.scalar(f"tokenizer.ggml.{name}")
    if isinstance(given, bool):
        return given
    begins = file.scalar("tokenizer.ggml.model") == "llama" or file.scalar("tokenizer.ggml.pre") in _BEGINS
    return begins and name == "add_bos_token"


def _special(file: GgufFile, folder: Path, tokens: list[bytes]) -> list[str]:
    """The begin, end and padding tokens that tokenizer_config.json names."""
    findings = []
    settings = _settings(folder)
    for name in ("bos", "eos", "pad", "unk"):
        named = settings.get(f"{name}_token")
        text = named.get("content") if isinstance(named, dict) else named
        key = {"unk": "unknown", "pad": "padding"}.get(name, name)
        index = effective_id(file, name)
        if not isinstance(text, str) or text.encode() not in tokens:
            continue
        found = tokens[index] if isinstance(index, int) and index < len(tokens) else b""
        if found != text.encode():
            shown = printable(found.decode(errors="replace"), 40)
            findings.append(
                f"tokenizer.ggml.{key}_token_id is {index} ({shown!r}); {name}_token is {printable(text, 40)!r}"
            )
    for name in ("add_bos_token", "add_eos_token"):
        wanted, flag = bool(settings.get(name, False)), effective_flag(file, name)
        if flag is not wanted:
            findings.append(f"tokenizer.ggml.{name} is {flag}; tokenizer_config.json has {wanted}")
    return findings


def _template(file: GgufFile, folder: Path) -> list[str]:
    path, written = folder / "chat_template.jinja", file.scalar("tokenizer.chat_template", "")
    wanted = read_regular_text(path) if path.is_file() else _settings(folder).get("chat_template", "")
    if not isinstance(wanted, str) or written in _same_templates(wanted):
        return []
    return ["tokenizer.chat_template differs from the model's" if written else "tokenizer.chat_template is missing"]


def _same_templates(template: str) -> set[str]:
    """Texts that render what the template renders: with its `generation` blocks, which mark text for training only,
    without their tags, or with blocks that are always taken."""
    taken = _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)
    return {template, _GENERATION.sub("", template), taken}


def _settings(folder: Path) -> dict[str, Any]:
    try:
        value = read_json(folder / "tokenizer_config.json")
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
