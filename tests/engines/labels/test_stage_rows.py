"""A stage's fields decide how its rows are labelled, and what becomes of a row that is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.data.door import Located
from engines.data.readers.row import TextRow
from engines.labels.label import label_rows
from engines.labels.row import LabelCounts, LabelRules
from engines.labels.stage_rows import Warnings, examples_of, protocol_of, rules_of
from engines.labels.templates import TEMPLATES
from engines.labels.vocabulary import Vocabulary, view_of_folder
from recipes.problems import OperatorError
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneStage
from recipes.stages.label_fields import LabelFields
from tests.engines.labels.labelling import outcomes, placed
from tests.engines.training.tiny import FINETUNE, write_tokenizer

GOOD = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
BAD = [{"role": "system", "content": "s"}, *GOOD]
PICKY = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATES["zephyr"].text

CHANGED: dict[str, tuple[Any, LabelRules]] = {
    "chat_template": ("gemma", LabelRules(9, template=TEMPLATES["gemma"].text)),
    "train_on": ("all", LabelRules(9, train_on="all")),
    "truncation": ("left", LabelRules(9, truncation="left")),
    "fold_system": (True, LabelRules(9, fold_system=True)),
    "train_on_template": (True, LabelRules(9, train_on_template=True)),
}


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return view_of_folder(write_tokenizer(tmp_path_factory.mktemp("tokenizer")), PICKY)


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(LabelFields.model_fields.keys() - StageFields.model_fields.keys()))
def test_each_field_reaches_the_rules(name: str) -> None:
    value, expected = CHANGED[name]
    assert rules_of(FinetuneStage(**FINETUNE), 9) == LabelRules(9)
    assert rules_of(FinetuneStage(**{**FINETUNE, name: value}), 9) == expected
    assert protocol_of(expected).startswith("max_length=9, truncation=")


@pytest.mark.torch
def test_a_refused_row_ends_the_stage_or_is_left_out_and_counted(view: Vocabulary) -> None:
    rules, counts = LabelRules(100), LabelCounts()
    with pytest.raises(OperatorError, match=r"^train\.jsonl:2: .*no system"):
        list(examples_of(placed([GOOD, BAD]), view, rules, LabelCounts()))
    warnings = Warnings(rules)
    kept = list(examples_of(placed([GOOD, BAD]), view, rules, counts, skip_refused=True, refused=warnings.add))
    assert [row.where for row in kept] == ["train.jsonl:1"]
    assert counts.metrics()["refused_rows"] == 1
    assert any("train.jsonl:2" in text and "no system" in text for text in warnings.texts(counts))


def test_a_template_is_a_name_or_a_file(tmp_path: Path) -> None:
    from engines.labels.templates import chosen_template

    file = tmp_path / "own.jinja"
    file.write_text("{{ messages }}")
    found = chosen_template(str(file))
    assert found is not None
    assert found.text == "{{ messages }}"
    assert chosen_template("") is None
    with pytest.raises(OperatorError, match="no such template"):
        chosen_template("chatmi")
    with pytest.raises(OperatorError, match=r"none\.jinja"):
        chosen_template(str(tmp_path / "none.jinja"))
    file.write_text(" \n")
    with pytest.raises(OperatorError, match="the template is empty"):
        chosen_template(str(file))


def test_rows_that_are_tokenized_ahead_have_the_same_labels_and_counts(view: Vocabulary) -> None:
    talks = [
        [{"role": "user", "content": f"Hi {at}"}, {"role": "assistant", "content": "Yes" * at}] for at in range(150)
    ]
    talks[70] = BAD
    rows: list[Located] = placed(talks)
    rows.insert(100, Located("train.jsonl:text", TextRow("one document " * 9)))
    found, counted = [], []
    for ahead in (False, True):
        counts = LabelCounts()
        found.append(list(label_rows(rows, view, LabelRules(40), counts, ahead=ahead)))
        counted.append(counts)
    assert found[0] == found[1]
    assert counted[0] == counted[1]
    assert counted[0].refused_rows == 1
    assert counted[0].dropped_rows > 0


def test_an_error_of_a_later_row_comes_after_the_rows_before_it(view: Vocabulary) -> None:
    def rows() -> Iterator[Located]:
        yield from placed([GOOD] * 100)
        raise OperatorError("train.jsonl:101: not JSON")

    found = label_rows(rows(), view, LabelRules(40), LabelCounts(), ahead=True)
    before = [next(found).where for _ in range(65)]  # the first row alone, and a chunk of 64; the next is not whole
    assert before[-1] == "train.jsonl:65"
    with pytest.raises(OperatorError, match="101"):
        next(found)


@pytest.mark.parametrize(("unknown", "noted"), [("[UNK]", True), ("[END]", False)])
def test_text_that_a_vocabulary_cannot_spell_is_counted_where_it_is_trained(unknown: str, noted: bool) -> None:
    """Some tokenizers name their end token as the unknown one; an end is nothing unknown."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[UNK]", "[END]", "yes", "no", ":", "?"]
    backend = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.add_special_tokens(["[UNK]", "[END]"])
    template = "{% for m in messages %}yes : {{ m.content }}{{ eos_token }}{% endfor %}"
    view = Vocabulary(backend, {"unk_token": unknown, "eos_token": "[END]"}, template)
    turns = [("no ?", "yes"), ("no ?", "yes 🙂"), ("🙂 ?", "no")]
    talks = [[{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in turns]
    counts = LabelCounts()
    assert len(outcomes(talks, view, counts=counts)) == 3
    notes = [note for note in counts.notes if "cannot spell" in note]
    assert [counts.notes[note] for note in notes] == ([1] if noted else []), (
        "one answer has it; a question is not trained"
    )
