"""The token that ends an answer is found where the template writes it, and in the labels of training."""

from __future__ import annotations

from typing import Any

import pytest

from engines.chat.ends import trained_ends, written_end
from tests.engines.labels.labelling import labelled
from tests.engines.training.tiny import CHATML, write_tokenizer

pytestmark = pytest.mark.torch
CONTROLS = ("<|end|>", "<|end|>|", "</s>", "<|im_end|>")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m.content + '\\n<|end|>\\n' }}{% endfor %}{{ eos_token }}", "<|end|>"),
        ("{% for m in messages %}{{ '### ' + m.content + '\\n### End\\n' }}{% endfor %}", None),
    ],
)
def test_the_end_of_an_answer_is_what_the_template_writes_after_it(template: str, end: str | None) -> None:
    assert written_end(template, {"eos_token": "</s>"}, CONTROLS) == end


def test_training_names_the_control_tokens_that_its_answers_end_with(tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(write_tokenizer(tmp_path)))
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    marked, unmarked = CHATML, CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    for template in (marked, unmarked):
        tokenizer.chat_template = template
        rows = [labelled(turns, tokenizer, 100) for turns in (talk, [*talk, *talk])]
        pairs = [(list(row.ids), list(row.labels)) for row in rows]
        assert trained_ends(pairs, tokenizer, max_length=100) == [4], "<|im_end|>, with or without the newline after it"
        longest = max(len(ids) for ids, _ in pairs)
        cut = [(ids, labels) for ids, labels in pairs if len(ids) == longest]
        assert trained_ends([(ids[:-3], labels[:-3]) for ids, labels in cut], tokenizer, max_length=longest - 3) == [4]
    assert trained_ends([([7, 8, 9], [-100, 8, 9])], tokenizer, max_length=100) == []
