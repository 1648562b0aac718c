"""`python -m bench.tokenizer_vectors FOLDER`: tests the export with llama.cpp's published tokenizer vectors.

FOLDER contains llama.cpp's `ggml-vocab-NAME.gguf`, `.gguf.inp` and `.gguf.out`. For each supported vocabulary the bench
writes the tokenizer's files of a model folder (tokenizer.model, or tokenizer.json with the pre-tokenizer's structure)
and exports a small model with them. It compares llama.cpp's ids and the folder tokenizer's ids of every input with the
published ones. Prints a table; `--write FILE` also writes it as Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer

from engines.llama.process import LlamaProcess
from exporters.gguf.write import read_model, write_gguf

SEPARATOR = "\n__ggml_vocab_test__\n"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_STARCODER = [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}]
STRUCTURES: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "qwen2": [_split(_WORDS + _REST), _BYTES],
    "llama-bpe": [_split(_WORDS + "{1,3}" + _REST), _BYTES],
    "starcoder": _STARCODER,
    "refact": _STARCODER,
    "deepseek-coder": [
        *map(_split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")),
        {"type": "Digits", "individual_digits": True},
        _BYTES,
    ],
}
"""Pre-tokenizers of tokenizer.json by llama.cpp's name, as the models' authors publish them."""


def main() -> int:
    """Compare every vocabulary of the folder that has vectors and a supported structure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", type=Path, help="also write the table here, as Markdown")
    args = parser.parse_args()
    lines = [
        "| vocabulary | kind | tokens | exported file in llama.cpp | tokenizer of the folder |",
        "|---|---|---|---|---|",
    ]
    passed = 0
    for path in sorted(args.folder.glob("ggml-vocab-*.gguf")):
        if path.with_name(path.name + ".inp").is_file() and (row := _check(path)) is not None:
            name, kind, count, ours, made, total = row
            passed += ours == total
            lines.append(f"| {name} | {kind} | {count} | {ours}/{total} | {made}/{total} |")
            sys.stderr.write(lines[-1] + "\n")
    table = "\n".join(lines) + "\n"
    sys.stdout.write(table)
    if args.write:
        args.write.write_text(table)
    return 0 if passed == len(lines) - 2 and passed >= 5 else 1


def _check(path: Path) -> tuple[str, str, int, int, int, int] | None:
    reader = gguf.GGUFReader(path)
    keys = {name: reader.fields[name].contents() for name in reader.fields if name.startswith("tokenizer.")}
    kind, pre = str(keys["tokenizer.ggml.model"]), str(keys.get("tokenizer.ggml.pre"))
    if kind != "llama" and (kind != "gpt2" or pre not in STRUCTURES):
        return None
    inputs = path.with_name(path.name + ".inp").read_text(encoding="utf-8").split(SEPARATOR)
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    wanted = [[int(token) for token in line.split()] for line in lines]
    if len(wanted) == len(inputs) - 1 and not inputs[-1]:
        wanted.append([])  # the last input is empty, and the file has no line for it
    if len(inputs) != len(wanted):
        raise SystemExit(f"{path}: {len(inputs)} inputs and {len(wanted)} outputs")
    tokens = list(keys["tokenizer.ggml.tokens"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        encode = _sentencepiece(folder, keys) if kind == "llama" else _byte_level(folder, keys, STRUCTURES[pre], pre)
        _tiny_model(folder, len(tokens))
        model = read_model(folder)
        write_gguf(model, model.plan("F16"), folder / "m.gguf", None)
        with LlamaProcess(folder / "m.gguf", 64, 1) as llama:
            prefix = bool(keys.get("tokenizer.ggml.add_space_prefix", kind == "llama"))
            ours = sum(
                llama.tokenize(text, parse_special=False) == ids for text, ids in zip(inputs, wanted, strict=True)
            )
            made = sum(encode(text) == ids for text, ids in zip(inputs, wanted, strict=True))
            assert prefix or kind != "llama"
    return (
        path.name.removeprefix("ggml-vocab-").removesuffix(".gguf"),
        f"{kind} / {pre}",
        len(tokens),
        ours,
        made,
        len(inputs),
    )


def _sentencepiece(folder: Path, keys: dict[str, Any]) -> Any:
    """tokenizer.model from a SentencePiece vocabulary, with the prefix space that its models have."""
    proto = sentencepiece_model_pb2.ModelProto()
    types = keys["tokenizer.ggml.token_type"]
    for number, (text, score, kind) in enumerate(
        zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"], types, strict=True)
    ):
        piece = proto.pieces.add()
        # a second unknown piece is padding, which SentencePiece calls unused
        piece.piece, piece.score, piece.type = text, score, 5 if kind == 2 and number else kind
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.vocab_size = len(types)
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode


def _byte_level(folder: Path, keys: dict[str, Any], structure: list[dict[str, Any]], pre: str) -> Any:
    """tokenizer.json from a byte-level vocabulary."""
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    added = [
        {
            "id": i,
            "content": t,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[i] == 3,
        }
        for i, t in enumerate(tokens)
        if types[i] in (3, 4)
    ]
    vocabulary = {text: index for index, text in enumerate(tokens) if types[index] not in (3, 4, 5)}
    steps = structure[0] if len(structure) == 1 else {"type": "Sequence", "pretokenizers": structure}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre == "llama-bpe", "vocab": vocabulary,
        "merges": [merge.split(" ") for merge in keys["tokenizer.ggml.merges"]],
    }  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": steps, "post_processor": None, "decoder": _BYTES, "model": model,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    made = Tokenizer.from_str(json.dumps({**tokenizer, "added_tokens": []}))
    return lambda text: made.encode(text, add_special_tokens=False).ids


def _tiny_model(folder: Path, vocab_size: int) -> None:
    """The smallest Llama for a vocabulary; its weights do not matter."""
    hidden, inner = 32, 32
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "vocab_size": vocab_size, "tie_word_embeddings": True, "rope_theta": 10_000.0, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    layer, square = "model.layers.0.", (hidden, hidden)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    shapes |= {f"{layer}self_attn.{part}_proj.weight": square for part in "qkvo"}
    shapes |= {f"{layer}mlp.{part}_proj.weight": square for part in ("gate", "up", "down")}
    shapes |= {f"{layer}{part}.weight": (hidden,) for part in ("input_layernorm", "post_attention_layernorm")}
    save_file(
        {name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "model.safetensors", {"format": "pt"}
    )


if __name__ == "__main__":
    raise SystemExit(main())
