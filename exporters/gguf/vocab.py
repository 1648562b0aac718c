"""The vocabulary of a GGUF file, from tokenizer.model (SentencePiece) or tokenizer.json (byte-level BPE)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from engines.files import read_regular_bytes
from engines.json_text import read_object
from engines.llama.gguf_file import Value
from engines.llama.gguf_write import (
    bool_value,
    float32_list,
    int32_list,
    text_list,
    text_value,
    uint8_list,
    uint32_value,
)
from exporters.gguf.pre_tokenizers import pre_tokenizer_name
from exporters.gguf.special_tokens import KEYS, TokenizerFiles, read_special_tokens
from exporters.hf_model.chat_templates import DEFAULT, read_chat_templates
from exporters.hf_model.tokenizer_file import read_tokenizer
from recipes.problems import OperatorError, printable

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types of GGUF; SentencePiece's piece types have the same numbers."""

_PHI3_TOKENS = (b"<unk>", b"<s>", b"</s>", b"<|endoftext|>")
"""The tokens without which llama.cpp loads no file whose name says that it is a Phi-3."""

_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


@dataclass
class Vocabulary:
    """Everything that the file stores about the tokenizer.

    `scores` is empty for BPE, `merges` for SentencePiece. With `takes_blanks`, control tokens take the blanks after
    them, as in Phi-3. `ends` are all tokens that end an answer, and
    `unplaced_ends` those of them that the file cannot name; `templates` are the chat templates by name.
    """

    model: str
    pre: str
    tokens: list[bytes]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    takes_blanks: bool = False
    remove_extra_whitespaces: bool | None = None
    charsmap: bytes = b""
    templates: dict[str, str] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    unplaced_ends: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_vocabulary(folder: Path, config: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a model folder, padded to the embedding's rows.

    Raises:
        OperatorError: the folder has no tokenizer, the tokenizer has more tokens than the embedding has rows, or
            llama.cpp does not support it.
    """
    settings = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    rows = int(config["vocab_size"])
    tokenizer = read_tokenizer(folder / "tokenizer.json", rows) if (folder / "tokenizer.json").is_file() else {}
    kind = (tokenizer.get("model") or {}).get("type")
    if (folder / "tokenizer.model").is_file():
        vocabulary = _sentencepiece(folder / "tokenizer.model")
        _add_tokens(vocabulary, tokenizer.get("added_tokens") or [], folder)
    elif kind == "BPE" and tokenizer["model"].get("byte_fallback"):
        vocabulary = _sentencepiece_json(tokenizer)
        _add_tokens(vocabulary, tokenizer.get("added_tokens") or [], folder)
    elif kind == "BPE":
        vocabulary = _bpe(tokenizer, folder)
    else:
        raise OperatorError(
            f"{folder} has no tokenizer.model and no byte-level tokenizer.json",
            "copy the tokenizer's files into the model folder",
        )
    _pad(vocabulary, rows, folder)
    vocabulary.takes_blanks = _takes_blanks(vocabulary, tokenizer.get("added_tokens") or [])
    templates = read_chat_templates(folder, settings)
    vocabulary.templates = {name: without_generation(text) for name, text in templates.items()}
    controls = [index for index, kind in enumerate(vocabulary.types) if kind == CONTROL]
    files = TokenizerFiles(tokenizer, settings, templates, vocabulary.tokens, controls, vocabulary.special)
    special = read_special_tokens(folder, files, config)
    vocabulary.special, vocabulary.ends, vocabulary.unplaced_ends = special.ids, special.ends, special.unplaced
    vocabulary.add_bos, vocabulary.add_eos = special.add_bos, special.add_eos
    vocabulary.warnings += special.warnings
    if templates and DEFAULT not in templates:
        vocabulary.warnings.append(
            f"no chat template is named default: the file keeps {', '.join(map(printable, templates))} by name only"
        )
    return vocabulary


def _takes_blanks(vocabulary: Vocabulary, added: list[dict[str, Any]]) -> bool:
    """Whether llama.cpp's rule for Phi-3 is the tokenizer's: control tokens but these take the blanks after them."""
    if not set(_PHI3_TOKENS) <= set(vocabulary.tokens):
        return False
    names = {name.decode() for name in _PHI3_TOKENS}
    return any(item.get("special") and item.get("rstrip") and item.get("content") not in names for item in added)


def vocabulary_keys(vocabulary: Vocabulary) -> dict[str, Value]:
    """Every key of `tokenizer.`, in file order."""
    keys = {
        "model": text_value(vocabulary.model),
        "pre": text_value(vocabulary.pre),
        "tokens": text_list(vocabulary.tokens),
        "token_type": int32_list(vocabulary.types),
    }
    if vocabulary.scores:
        keys["scores"] = float32_list(vocabulary.scores)
    if vocabulary.merges:
        keys["merges"] = text_list(vocabulary.merges)
    keys |= {f"{KEYS[name]}_token_id": uint32_value(token) for name, token in vocabulary.special.items()}
    keys["add_bos_token"] = bool_value(vocabulary.add_bos)
    keys["add_eos_token"] = bool_value(vocabulary.add_eos)
    keys["add_space_prefix"] = bool_value(vocabulary.add_space_prefix)
    if vocabulary.remove_extra_whitespaces is not None:
        keys["remove_extra_whitespaces"] = bool_value(vocabulary.remove_extra_whitespaces)
    if vocabulary.charsmap:
        keys["precompiled_charsmap"] = uint8_list(vocabulary.charsmap)
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()} | _template_keys(vocabulary.templates)


def _template_keys(templates: Mapping[str, str]) -> dict[str, Value]:
    """The default chat template, and those with names: letters, digits and _ of each, and a list of the names."""
    others = [(name, text) for name, text in templates.items() if name != DEFAULT]
    named = {re.sub(r"[^A-Za-z0-9]", "_", name): text for name, text in reversed(others)}
    keys: dict[str, Value] = {}
    if templates.get(DEFAULT):
        keys["tokenizer.chat_template"] = text_value(templates[DEFAULT])
    if named:
        keys["tokenizer.chat_templates"] = text_list([name.encode() for name in sorted(named)])
        keys |= {f"tokenizer.chat_template.{name}": text_value(named[name]) for name in sorted(named)}
    return keys


def _sentencepiece(path: Path) -> Vocabulary:
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(read_regular_bytes(path))
    except Exception as error:  # protobuf's own exception is not importable by a stable name
        raise OperatorError(f"{path} is not a SentencePiece model") from error
    if proto.trainer_spec.model_type != 2:
        raise OperatorError(
            f"{path} is a SentencePiece model, but not BPE",
            "only BPE is supported; train the tokenizer with model_type = bpe",
        )
    texts = [piece.piece for piece in proto.pieces]
    broken = next((number for number, text in enumerate(texts) if not isinstance(text, str)), None)
    if broken is not None:  # protobuf returns bytes for text that is not UTF-8
        raise OperatorError(
            f"{path}: piece {broken} is not UTF-8 text", "the file is damaged: download or copy it again"
        )
    normalizer = proto.normalizer_spec
    vocabulary = Vocabulary(
        model="llama",
        pre="default",
        tokens=[text.encode() for text in texts],
        types=[int(piece.type) for piece in proto.pieces],
        scores=[float(piece.score) for piece in proto.pieces],
        add_space_prefix=bool(normalizer.add_dummy_prefix),
        remove_extra_whitespaces=bool(normalizer.remove_extra_whitespaces),
        charsmap=bytes(normalizer.precompiled_charsmap),
    )
    for index, kind in enumerate(vocabulary.types):
        names = {UNKNOWN: "unk"}
        if kind in names:
            vocabulary.special.setdefault(names[kind], index)
    spec = proto.trainer_spec
    for name, index in (("bos", spec.bos_id), ("eos", spec.eos_id), ("pad", spec.pad_id)):
        if 0 <= index < len(vocabulary.tokens):
            vocabulary.special[name] = int(index)
    if vocabulary.remove_extra_whitespaces or vocabulary.charsmap:
        vocabulary.warnings.append(
            "tokenizer.model normalizes text, but llama.cpp does not: some texts get different token ids"
        )
    return vocabulary


def _sentencepiece_json(tokenizer: dict[str, Any]) -> Vocabulary:
    """A SentencePiece BPE vocabulary from tokenizer.json, without tokenizer.model.

    SentencePiece merges the pair whose piece has the highest score; BPE merges the pair that was learned first. So a
    piece's score is minus the index of the first merge that makes it. Pieces that no merge makes get -1e6.
    """
    model = tokenizer["model"]
    by_id = {int(index): str(text) for text, index in model["vocab"].items()}
    scores: dict[str, float] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(rank))
    unknown = model.get("unk_token")
    vocabulary = Vocabulary(model="llama", pre="default", tokens=[], types=[], remove_extra_whitespaces=False)
    for index in range(max(by_id, default=-1) + 1):
        text = by_id.get(index)
        vocabulary.tokens.append((text if text is not None else f"[PAD{index}]").encode())
        is_byte = text is not None and re.fullmatch(r"<0x[0-9A-F]{2}>", text) is not None
        kind = UNUSED if text is None else BYTE if is_byte else UNKNOWN if text == unknown else NORMAL
        vocabulary.types.append(kind)
        vocabulary.scores.append(scores.get(text or "", -1e6))
        if kind == UNKNOWN:
            vocabulary.special["unk"] = index
    vocabulary.add_space_prefix = _prefixes_space(tokenizer)
    if vocabulary.add_space_prefix:
        vocabulary.warnings.append(
            "the model has tokenizer.json but no tokenizer.model: texts that begin with a space may get different "
            "token ids in llama.cpp"
        )
    return vocabulary


def _prefixes_space(tokenizer: dict[str, Any]) -> bool:
    """Whether a Prepend normalizer, or a Metaspace whose scheme is not "never", puts a space before a text."""
    normalizer, before = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    steps = [normalizer, *normalizer.get("normalizers", [])]
    splits = [before, *before.get("pretokenizers", [])]
    prepends = any(step.get("type") == "Prepend" for step in steps)
    return prepends or any(
        s.get("type") == "Metaspace" and s.get("prepend_scheme", "always") != "never" for s in splits
    )


def _add_tokens(vocabulary: Vocabulary, added: list[dict[str, Any]], folder: Path) -> None:
    """Add tokenizer.json's added tokens: special ones become control tokens; some have new ids."""
    for token in sorted(added, key=lambda entry: int(entry["id"])):
        index, text = int(token["id"]), str(token["content"]).encode()
        kind = CONTROL if token.get("special") else USER_DEFINED
        if index < len(vocabulary.tokens):
            if vocabulary.model == "gpt2" and vocabulary.types[index] == UNUSED:  # a gap in the byte-level vocabulary
                vocabulary.tokens[index], vocabulary.types[index] = text, kind
                continue
            if vocabulary.tokens[index] != text:
                raise OperatorError(
                    f"{folder}: token {index} is {printable(vocabulary.tokens[index].decode(errors='replace'))} in "
                    f"the vocabulary and {printable(str(token['content']))} in added_tokens of tokenizer.json"
                )
            if vocabulary.types[index] in (NORMAL, USER_DEFINED):
                vocabulary.types[index] = kind
            continue
        _grow(vocabulary, index)
        vocabulary.tokens.append(text)
        vocabulary.types.append(kind)
        if vocabulary.model == "llama":
            vocabulary.scores.append(-1000.0)


def _grow(vocabulary: Vocabulary, size: int) -> None:
    for index in range(len(vocabulary.tokens), size):
        vocabulary.tokens.append(f"[PAD{index}]".encode())
        vocabulary.types.append(UNUSED)
        if vocabulary.model == "llama":
            vocabulary.scores.append(-1000.0)


def _bpe(tokenizer: dict[str, Any], folder: Path) -> Vocabulary:
    model = tokenizer["model"]
    pre, warnings = pre_tokenizer_name(tokenizer)
    by_id = {int(index): str(text) for text, index in model["vocab"].items()}
    vocabulary = Vocabulary(model="gpt2", pre=pre, tokens=[], types=[], warnings=warnings)
    for index in range(max(by_id, default=-1) + 1):
        vocabulary.tokens.append(by_id.get(index, f"[PAD{index}]").encode())
        vocabulary.types.append(NORMAL if index in by_id else UNUSED)
    _add_tokens(vocabulary, tokenizer.get("added_tokens") or [], folder)
    # newer files store merges as pairs, older ones as one string; llama.cpp reads "left right"
    vocabulary.merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return vocabulary


def _pad(vocabulary: Vocabulary, rows: int, folder: Path) -> None:
    if len(vocabulary.tokens) > rows:
        raise OperatorError(
            f"{folder}: the tokenizer has {len(vocabulary.tokens)} tokens, but the embedding has {rows} rows",
            "they belong to different models",
        )
    _grow(vocabulary, rows)


def without_generation(template: str) -> str:
    """A template that renders the same without `generation` blocks, which only mark text for training."""
    return _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)
