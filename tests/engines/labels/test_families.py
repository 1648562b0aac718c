"""Conversations of real families, marked by hand: 「what the loss counts」 in the whole text that the model sees."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engines.labels.row import LabelledRow
from engines.labels.vocabulary import Vocabulary
from tests.engines.labels.labelling import drawn_wrong, outcomes, scored_texts
from tests.engines.labels.test_stock_templates import answer, stock_templates, user

pytestmark = pytest.mark.torch

OWN = {
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    "phi4": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
    "smollm2": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
        "{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "granite": (
        "{% for m in messages %}"
        "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
    ),
    "olmo2": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '\n' }}"
        "{% elif loop.last %}{{ '<|assistant|>\n' + m.content + eos_token }}"
        "{% else %}{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
"""Their forms in own words; the others are read from the installed TRL."""

MARKED = {
    "qwen2_5": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n「A1<|im_end|>」\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n「A2<|im_end|>」\n"
    ),
    "qwen3": (
        "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n「A1<|im_end|>」\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n「A2<|im_end|>」\n"
    ),
    "llama3": (
        "<bos><|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n「A1<|eot_id|>」"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n「A2<|eot_id|>」"
    ),
    "llama3_1": (
        "<bos><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n「A1<|eot_id|>」"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n「A2<|eot_id|>」"
    ),
    "gemma": (
        "<bos><start_of_turn>user\nQ1<end_of_turn>\n<start_of_turn>model\n「A1<end_of_turn>」\n"
        "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n「A2<end_of_turn>」\n"
    ),
    "gemma3": (
        "<bos><start_of_turn>user\nQ1<end_of_turn>\n<start_of_turn>model\n「A1<end_of_turn>」\n"
        "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n「A2<end_of_turn>」\n"
    ),
    "phi3": (
        "<|user|>\nQ1<|end|>\n<|assistant|>\n「A1<|end|>」\n<|user|>\nQ2<|end|>\n<|assistant|>\n「A2<|end|>」\n<eos>"
    ),
    "deepseekv3": "<bos><\uff5cUser\uff5c>Q1<\uff5cAssistant\uff5c>「A1<\uff5cend▁of▁sentence\uff5c>」"
    "<\uff5cUser\uff5c>Q2<\uff5cAssistant\uff5c>「A2<\uff5cend▁of▁sentence\uff5c>」",
    "mistral": "<bos>[INST] Q1 [/INST]「 A1<eos>」[INST] Q2 [/INST]「 A2<eos>」",
    "phi4": (
        "<|im_start|>user<|im_sep|>Q1<|im_end|><|im_start|>assistant<|im_sep|>「A1<|im_end|>」"
        "<|im_start|>user<|im_sep|>Q2<|im_end|><|im_start|>assistant<|im_sep|>「A2<|im_end|>」"
    ),
    "smollm2": (
        "<|im_start|>system\nYou are SmolLM.<|im_end|>\n"
        "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n「A1<|im_end|>」\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n「A2<|im_end|>」\n"
    ),
    "granite": (
        "<|start_of_role|>user<|end_of_role|>Q1<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>「A1<|end_of_text|>」\n"
        "<|start_of_role|>user<|end_of_role|>Q2<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>「A2<|end_of_text|>」\n"
    ),
    "olmo2": "<bos><|user|>\nQ1\n<|assistant|>\n「A1<eos>」\n<|user|>\nQ2\n<|assistant|>\n「A2<eos>」",
}
TALK = [user("Q1"), answer("A1"), user("Q2"), answer("A2")]
NOT_CONTROL = {"<|user|>", "<|assistant|>"}
"""Text in OLMo 2, control tokens in Phi-3."""


def tokenizer_for(name: str, text: str) -> Any:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    alphabet = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    found = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    marks = (
        set(re.findall(r"<[^<>「」\n]+>", text)) - {"<think>", "</think>"} - (NOT_CONTROL if name == "olmo2" else set())
    )
    blank_eaters = name == "phi3"  # its own tokens take the blanks behind them
    tokens = [AddedToken(one, special=True, normalized=False, rstrip=blank_eaters) for one in sorted(marks)]
    found.add_special_tokens(tokens)
    return found


@pytest.fixture(scope="module")
def templates() -> dict[str, str]:
    return {**stock_templates(), **OWN}


@pytest.mark.parametrize("name", MARKED)
def test_a_family_is_labelled_as_it_was_marked_by_hand(name: str, templates: dict[str, str]) -> None:
    marked = MARKED[name]
    view = Vocabulary(tokenizer_for(name, marked), {"bos_token": "<bos>", "eos_token": "<eos>"}, templates[name])
    row = outcomes([TALK], view)[0]
    assert isinstance(row, LabelledRow), row
    assert row.text == re.sub("[「」]", "", marked)
    assert [text.strip() for text in scored_texts(row)] == [
        text.strip() for text in re.findall("「(.*?)」", marked, re.DOTALL)
    ]
    assert drawn_wrong(row) == []
    assert [row.text[one.start : one.end] for one in row.pieces if one.kind == "scored"] == re.findall(
        "「(.*?)」", marked, re.DOTALL
    )
