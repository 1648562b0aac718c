"""What llama.cpp does with a vocabulary where the file does not say it (`llama_vocab::impl::load`, llama-vocab.cpp)."""

from __future__ import annotations

from collections.abc import Collection

_ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
})  # fmt: skip
"""Tokens at which llama.cpp ends an answer because of their names."""
_END = "<|end|>"
_MESSAGE_ENDS = (("<|return|>", "<|call|>"), ("<|calls|>", "<|flush|>"))
"""With both of a pair, `_END` ends a message and not an answer."""
_DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {"bos": 11, "eos": 11}}
_BEGINS = frozenset({
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken",
    "chameleon",
})  # fmt: skip
"""Pre-tokenizers of byte-level vocabularies whose texts begin with the begin token."""


CONTROL, STRIPS_LEFT, STRIPS_RIGHT = 1 << 3, 1 << 7, 1 << 8
"""Attributes of a token (`enum llama_token_attr`, llama.h)."""


def ends_by_name(names: Collection[str]) -> frozenset[str]:
    """The tokens of a vocabulary that end an answer because of their names."""
    found = frozenset(names) & _ENDS
    if any(all(name in found for name in pair) for pair in _MESSAGE_ENDS):
        found -= {_END}
    return found


def default_id(model: str, name: str) -> int | None:
    """The id of a special token that a file does not name; None: llama.cpp has none.

    Args:
        model: `tokenizer.ggml.model`.
        name: "bos", "eos", "unknown", "padding", "eot" or "eom".
    """
    return _DEFAULT_IDS.get(model, {}).get(name)


def adds_begin(model: str, pre: str) -> bool:
    """Whether llama.cpp puts the begin token before a text if the file has no `tokenizer.ggml.add_bos_token`."""
    return model == "llama" or (model == "gpt2" and pre in _BEGINS)
