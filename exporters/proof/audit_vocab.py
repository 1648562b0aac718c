"""Compares the vocabulary of a GGUF file with the tokenizer's files: tokens, their types, scores, merges, splits.

What a file leaves out has llama.cpp's default (src/llama-vocab.cpp). Values that a runtime treats alike are equal: an
added token may be a control token or a user-defined one, and scores that order the merges alike are the same scores.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.files import read_regular_bytes
from engines.json_text import read_json
from engines.llama.gguf_file import ARRAY, FLOAT32, INT32, STRING, GgufFile, Value
from recipes import quantities
from recipes.problems import printable

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_KINDS = {1: "normal", 2: "unknown", 3: "control", 4: "user-defined", 5: "unused", 6: "byte"}
_FORMS = {FLOAT32: "f", INT32: "i", 0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)
"""Added tokens that llama.cpp's converter makes control tokens although tokenizer.json does not call them special."""
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = "ByteLevel"
_SPLITS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "starcoder": ("digits", _GPT2),
    "smollm": ("digits", _GPT2),
    "refact": ("digits", _GPT2),
    "command-r": ("digits", _GPT2),
    "qwen2": (_WORDS + r"\p{N}" + _REST,),
    "llama3": (_WORDS + r"\p{N}{1,3}" + _REST,),
    "llama-v3": (_WORDS + r"\p{N}{1,3}" + _REST,),
    "llama-bpe": (_WORDS + r"\p{N}{1,3}" + _REST,),
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", "digits"),
}
"""How llama.cpp's pre-tokenizers split a text, in the words of tokenizer.json. Files with another name are not judged
here: the comparison of token ids is."""


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


def audit_vocabulary(file: GgufFile, folder: Path, rows: int) -> list[str]:
    """Compare tokens, types, scores, merges and splits with the tokenizer's files; return the findings.

    Args:
        file: the file.
        folder: the model's folder.
        rows: rows of the embedding.
    """
    tokens = texts_of(file.keys.get("tokenizer.ggml.tokens"))
    findings = []
    if len(tokens) != rows:
        findings.append(f"tokenizer.ggml.tokens has {len(tokens)} entries; the embedding has {rows} rows")
    path = folder / "tokenizer.json"
    tokenizer = read_json(path) if path.is_file() else {}
    added = _added(folder) | {int(entry["id"]): entry for entry in tokenizer.get("added_tokens") or []}
    if (folder / "tokenizer.model").is_file():
        findings += _against_sentencepiece(file, folder / "tokenizer.model", tokens, added)
    elif tokenizer:
        findings += _against_json(file, path, tokenizer, tokens)
    return findings + _added_types(file, added)


def _added(folder: Path) -> dict[int, Mapping[str, Any]]:
    """The added tokens that tokenizer_config.json lists, by number."""
    path = folder / "tokenizer_config.json"
    listed = (read_json(path) if path.is_file() else {}).get("added_tokens_decoder") or {}
    return {int(number): entry for number, entry in listed.items() if isinstance(entry, dict)}


def _against_sentencepiece(
    file: GgufFile, path: Path, tokens: list[bytes], added: Mapping[int, Mapping[str, Any]]
) -> list[str]:
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    pieces = SentencePieceProcessor(model_file=str(path))
    count = pieces.get_piece_size()
    own = [number for number in range(count) if number not in added]
    findings = _texts(tokens, {number: pieces.id_to_piece(number) for number in range(count)}, path)
    scores = numbers_of(file.keys.get("tokenizer.ggml.scores"))
    expected = {number: struct.unpack("<f", struct.pack("<f", pieces.get_score(number)))[0] for number in own}
    off = [number for number in own if number < len(scores) and scores[number] != expected[number]]
    if len(scores) != len(tokens):
        findings.append(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    elif off:
        findings.append(
            f"tokenizer.ggml.scores: {len(off)} of {count} differ from {path.name}; token {off[0]} has "
            f"{quantities.exact(scores[off[0]])}, not {quantities.exact(expected[off[0]])}"
        )
    findings += _types(file, {number: _piece_kinds(pieces, number) for number in own})
    findings += _model(file, "llama", "a SentencePiece model")
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(read_regular_bytes(path))
    return findings + _prefix(file, proto.normalizer_spec.add_dummy_prefix)


def _piece_kinds(pieces: Any, number: int) -> tuple[int, ...]:
    if pieces.is_unknown(number):
        return (UNKNOWN, CONTROL)
    if pieces.is_control(number):
        return (CONTROL,)
    if pieces.is_unused(number):
        return (UNUSED,)
    return (BYTE,) if pieces.is_byte(number) else (NORMAL, USER_DEFINED)


def _against_json(file: GgufFile, path: Path, tokenizer: Mapping[str, Any], tokens: list[bytes]) -> list[str]:
    model = tokenizer["model"]
    vocabulary = {int(index): str(text) for text, index in model["vocab"].items()}
    added = {int(entry["id"]): str(entry["content"]) for entry in tokenizer.get("added_tokens") or []}
    findings = _texts(tokens, vocabulary | added, path)
    if model.get("type") != "BPE":
        return findings
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    ordinary = {number: text for number, text in vocabulary.items() if number not in added}
    if model.get("byte_fallback"):
        kinds = {number: _json_kinds(text, model.get("unk_token")) for number, text in ordinary.items()}
        findings += [*_model(file, "llama", "BPE with byte fallback"), *_types(file, kinds)]
        return findings + _ranks(file, merges, vocabulary, path) + _prefix(file, _prefixes_space(tokenizer))
    findings += [
        *_model(file, "gpt2", "byte-level BPE"),
        *_types(file, dict.fromkeys(ordinary, (NORMAL, USER_DEFINED))),
    ]
    return findings + _merges(file, merges, path) + _pre(file, tokenizer)


def _json_kinds(text: str, unknown: str | None) -> tuple[int, ...]:
    if text == unknown:
        return (UNKNOWN, CONTROL)
    return (BYTE,) if re.fullmatch(r"<0x[0-9A-F]{2}>", text) else (NORMAL, USER_DEFINED)


def _texts(tokens: Sequence[bytes], wanted: Mapping[int, str], path: Path) -> list[str]:
    """Tokens that are not the tokenizer's. The converter of llama.cpp writes user-defined tokens with spaces."""
    wrong = [
        number
        for number, text in sorted(wanted.items())
        if number >= len(tokens) or tokens[number] not in (text.encode(), text.replace("\u2581", " ").encode())
    ]
    if not wrong:
        return []
    place = wrong[0]
    got = printable(tokens[place].decode(errors="replace"), 40) if place < len(tokens) else "nothing"
    return [
        f"tokenizer.ggml.tokens: {len(wrong)} differ from {path.name}; token {place} is {got!r}, not "
        f"{printable(wanted[place], 40)!r}"
    ]


def _types(file: GgufFile, allowed: Mapping[int, tuple[int, ...]]) -> list[str]:
    """Token types, by the token's number; an absent list makes every token normal."""
    types = numbers_of(file.keys.get("tokenizer.ggml.token_type"))
    wrong = [
        number
        for number, kinds in sorted(allowed.items())
        if (types[number] if number < len(types) else NORMAL) not in kinds
    ]
    if not wrong:
        return []
    got = int(types[wrong[0]]) if wrong[0] < len(types) else NORMAL
    return [
        f"tokenizer.ggml.token_type: {len(wrong)} differ from the tokenizer; token {wrong[0]} has type {got} "
        f"({_KINDS.get(got, 'unknown number')}), not {_either(allowed[wrong[0]])}"
    ]


def _either(kinds: Iterable[int]) -> str:
    return " or ".join(f"{kind} ({_KINDS[kind]})" for kind in kinds)


def _added_types(file: GgufFile, added: Mapping[int, Mapping[str, Any]]) -> list[str]:
    allowed = {}
    for number, entry in added.items():
        text = str(entry.get("content", ""))
        if entry.get("special"):
            allowed[number] = (CONTROL, UNKNOWN)
        else:
            allowed[number] = (USER_DEFINED, CONTROL) if _LOOKS_SPECIAL.fullmatch(text) else (USER_DEFINED, NORMAL)
    return _types(file, allowed)


def _model(file: GgufFile, wanted: str, why: str) -> list[str]:
    got = file.scalar("tokenizer.ggml.model")
    return [] if got == wanted else [f"tokenizer.ggml.model is {printable(str(got), 40)}; {why} requires {wanted}"]


def _merges(file: GgufFile, merges: Sequence[str], path: Path) -> list[str]:
    written = [text.decode(errors="replace") for text in texts_of(file.keys.get("tokenizer.ggml.merges"))]
    if written == list(merges):
        return []
    place = next((i for i, pair in enumerate(zip(written, merges, strict=False)) if pair[0] != pair[1]), len(written))
    return [
        f"tokenizer.ggml.merges differ from {path.name} at merge {place} (the file has {len(written)} merges, the "
        f"tokenizer {len(merges)})"
    ]


def _ranks(file: GgufFile, merges: Sequence[str], vocabulary: Mapping[int, str], path: Path) -> list[str]:
    """Scores that order merged pieces as the tokenizer's merges do: the first merge that makes a piece counts."""
    scores = numbers_of(file.keys.get("tokenizer.ggml.scores"))
    numbers = {text: number for number, text in vocabulary.items()}
    last: tuple[float, str] | None = None
    for piece in dict.fromkeys(merge.replace(" ", "", 1) for merge in merges):
        number = numbers.get(piece)
        if number is None:
            continue
        if number >= len(scores):
            return [f"tokenizer.ggml.scores has {len(scores)} entries; token {number} has none"]
        score = scores[number]
        if last is not None and not score < last[0]:
            return [
                f"tokenizer.ggml.scores: token {number} ({printable(piece, 40)!r}) has {quantities.exact(score)}, not "
                f"less than {quantities.exact(last[0])} of {printable(last[1], 40)!r}, which {path.name} merges first"
            ]
        last = (score, piece)
    return []


def _pre(file: GgufFile, tokenizer: Mapping[str, Any]) -> list[str]:
    """The name of llama.cpp's pre-tokenizer, by how tokenizer.json splits a text."""
    name = str(file.scalar("tokenizer.ggml.pre", "default"))
    given = tokenizer.get("pre_tokenizer") or {}
    parts = given.get("pretokenizers", []) if given.get("type") == "Sequence" else [given]
    splits = tuple(split for part in parts if (split := _split(part)))
    if name == "default":
        return [
            f"tokenizer.ggml.pre {'is' if 'tokenizer.ggml.pre' in file.keys else 'is missing, which means'} default; "
            "byte-level BPE needs the name of its pre-tokenizer"
        ]
    if name not in _SPLITS or _SPLITS[name] == splits:
        return []
    return [
        f"tokenizer.ggml.pre is {printable(name, 40)}, which splits a text in another way than tokenizer.json "
        f"({printable(', '.join(splits), 120)})"
    ]


def _split(part: Mapping[str, Any]) -> str:
    """One step of a pre-tokenizer; empty for one that splits nothing."""
    match part.get("type"):
        case "ByteLevel":
            return _GPT2 if part.get("use_regex", True) else ""
        case "Digits":
            return "digits" if part.get("individual_digits") else "numbers"
        case "Split":
            pattern = part.get("pattern") or {}
            return str(pattern.get("Regex", pattern.get("String", "")))
    return str(part.get("type"))


def _prefix(file: GgufFile, wanted: bool) -> list[str]:
    """Whether a space is put before a text; an absent key means that it is."""
    got = file.scalar("tokenizer.ggml.add_space_prefix", True)
    if bool(got) is bool(wanted):
        return []
    how = "is" if "tokenizer.ggml.add_space_prefix" in file.keys else "is missing, which means"
    return [f"tokenizer.ggml.add_space_prefix {how} {bool(got)}; the tokenizer's is {bool(wanted)}"]


def _prefixes_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a normalizer or a pre-tokenizer of tokenizer.json puts a space before a text."""
    steps = [tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}]
    steps += [inner for step in list(steps) for inner in step.get("normalizers", []) + step.get("pretokenizers", [])]
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
