"""Compares the vocabulary of a GGUF file with the tokenizer's files."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.files import read_regular_text
from engines.json_text import read_json
from engines.llama.gguf_file import ARRAY, FLOAT32, INT32, STRING, GgufFile, Value
from recipes import quantities
from recipes.problems import printable

_FORMS = {FLOAT32: "f", INT32: "i", 4: "I"}


def audit_tokens(file: GgufFile, folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Compare tokens, scores, merges, special ids and chat template with the tokenizer's files."""
    tokens = texts_of(file.keys.get("tokenizer.ggml.tokens"))
    rows = int(config["vocab_size"])
    findings = []
    if len(tokens) != rows:
        findings.append(f"tokenizer.ggml.tokens has {len(tokens)} entries; the embedding has {rows} rows")
    if (folder / "tokenizer.model").is_file():
        findings += _against_sentencepiece(file, folder / "tokenizer.model", tokens)
    elif (folder / "tokenizer.json").is_file():
        findings += _against_json(file, folder / "tokenizer.json", tokens)
    return findings + _special(file, folder, tokens) + _template(file, folder)


def texts_of(value: Value | None) -> list[bytes]:
    """A list of strings, as bytes; empty for anything else."""
    if value is None or value.kind != ARRAY or len(value.raw) < 12:
        return []
    item, count = struct.unpack_from("<IQ", value.raw)
    if item != STRING:
        return []
    found, at = [], 12
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", value.raw, at)
        found.append(value.raw[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def numbers_of(value: Value | None) -> list[float]:
    """A list of numbers; empty for anything else."""
    if value is None or value.kind != ARRAY or len(value.raw) < 12:
        return []
    item, count = struct.unpack_from("<IQ", value.raw)
    form = _FORMS.get(item)
    return list(struct.unpack_from(f"<{count}{form}", value.raw, 12)) if form else []


def _against_sentencepiece(file: GgufFile, path: Path, tokens: list[bytes]) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(path))
    count = pieces.get_piece_size()
    scores = numbers_of(file.keys.get("tokenizer.ggml.scores"))
    findings = []
    wrong = [i for i in range(min(count, len(tokens))) if tokens[i] != pieces.id_to_piece(i).encode()]
    if wrong or len(tokens) < count:
        findings.append(
            _first("tokenizer.ggml.tokens", wrong, tokens, [pieces.id_to_piece(i) for i in wrong[:1]], path)
        )
    expected = [struct.unpack("<f", struct.pack("<f", pieces.get_score(i)))[0] for i in range(count)]
    off = [i for i in range(min(count, len(scores))) if scores[i] != expected[i]]
    if len(scores) != len(tokens):
        findings.append(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    elif off:
        i = off[0]
        findings.append(
            f"tokenizer.ggml.scores: {len(off)} of {count} differ from {path.name}; token {i} has "
            f"{quantities.exact(scores[i])}, not {quantities.exact(expected[i])}"
        )
    types = numbers_of(file.keys.get("tokenizer.ggml.token_type"))
    controls = [i for i in range(min(count, len(types))) if pieces.is_control(i) and types[i] != 3]
    if controls:
        findings.append(
            f"tokenizer.ggml.token_type: control token {controls[0]} has type "
            f"{quantities.exact(types[controls[0]])}, not 3"
        )
    flags = {"tokenizer.ggml.model": "llama"}
    return findings + [
        f"{key} is {printable(str(file.scalar(key)), 40)}; a SentencePiece model requires {wanted}"
        for key, wanted in flags.items()
        if file.scalar(key) != wanted
    ]


def _against_json(file: GgufFile, path: Path, tokens: list[bytes]) -> list[str]:
    tokenizer = read_json(path)
    vocabulary = {int(index): str(text) for text, index in tokenizer["model"]["vocab"].items()}
    vocabulary |= {int(entry["id"]): str(entry["content"]) for entry in tokenizer.get("added_tokens", [])}
    wrong = [i for i, text in sorted(vocabulary.items()) if i >= len(tokens) or tokens[i] != text.encode()]
    findings = []
    if wrong:
        findings.append(_first("tokenizer.ggml.tokens", wrong, tokens, [vocabulary[wrong[0]]], path))
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"].get("merges", [])]
    written = [text.decode(errors="replace") for text in texts_of(file.keys.get("tokenizer.ggml.merges"))]
    if tokenizer["model"].get("type") == "BPE" and "tokenizer.ggml.scores" not in file.keys and written != merges:
        place = next(
            (i for i, pair in enumerate(zip(written, merges, strict=False)) if pair[0] != pair[1]), len(written)
        )
        findings.append(
            f"tokenizer.ggml.merges differ from {path.name} at merge {place} (the file has {len(written)} merges, the "
            f"tokenizer {len(merges)})"
        )
    return findings


def _first(key: str, wrong: list[int], tokens: list[bytes], wanted: list[str], path: Path) -> str:
    if not wrong:
        return f"{key} has fewer entries than {path.name}"
    place = wrong[0]
    got = printable(tokens[place].decode(errors="replace"), 40) if place < len(tokens) else "nothing"
    return f"{key}: {len(wrong)} differ from {path.name}; token {place} is {got!r}, not {printable(wanted[0], 40)!r}"


def _special(file: GgufFile, folder: Path, tokens: list[bytes]) -> list[str]:
    """The begin, end and padding tokens that tokenizer_config.json names."""
    findings = []
    settings = _settings(folder)
    for name in ("bos", "eos", "pad", "unk"):
        named = settings.get(f"{name}_token")
        text = named.get("content") if isinstance(named, dict) else named
        key = {"unk": "unknown", "pad": "padding"}.get(name, name)
        index = file.scalar(f"tokenizer.ggml.{key}_token_id")
        if not isinstance(text, str) or text.encode() not in tokens:
            continue
        found = tokens[index] if isinstance(index, int) and index < len(tokens) else b""
        if found != text.encode():
            shown = printable(found.decode(errors="replace"), 40)
            findings.append(
                f"tokenizer.ggml.{key}_token_id is {index} ({shown!r}); {name}_token is {printable(text, 40)!r}"
            )
    for name in ("add_bos_token", "add_eos_token"):
        wanted, found = bool(settings.get(name, False)), file.scalar(f"tokenizer.ggml.{name}")
        if found is not wanted:
            findings.append(f"tokenizer.ggml.{name} is {found}; tokenizer_config.json has {wanted}")
    return findings


def _template(file: GgufFile, folder: Path) -> list[str]:
    path, written = folder / "chat_template.jinja", file.scalar("tokenizer.chat_template", "")
    wanted = read_regular_text(path) if path.is_file() else _settings(folder).get("chat_template", "")
    if not isinstance(wanted, str):
        return []
    # `generation` marks text for training only, and llama.cpp does not support it.
    if "generation" not in wanted and written != wanted:
        return ["tokenizer.chat_template differs from the model's"]
    return ["tokenizer.chat_template is missing"] if wanted and not written else []


def _settings(folder: Path) -> dict[str, Any]:
    try:
        value = read_json(folder / "tokenizer_config.json")
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
