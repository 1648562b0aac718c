"""The loss counts each answer with its end token and nothing else; what a template makes of a row is compared to it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from engines.chat import rendering
from engines.data.door import Located
from engines.data.readers.row import Message, PreferenceRow, TextRow
from engines.labels.label import label_rows, prompt_ids
from engines.labels.row import DroppedRow, LabelCounts, LabelledRow, LabelRules, RefusedRow
from engines.labels.templates import TEMPLATES
from engines.labels.vocabulary import Vocabulary, view_of, view_of_folder
from recipes.problems import OperatorError
from recipes.stages.label_fields import TEMPLATE_NAMES
from tests.engines.labels.labelling import Turns, labelled, outcomes, scored_texts
from tests.engines.look import looked_at
from tests.engines.training.tiny import CHATML, write_tokenizer

pytestmark = pytest.mark.torch

KEEPS_LAST_REASONING = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def view(folder: Path) -> Vocabulary:
    return view_of_folder(folder)


def talk(*turns: str, system: str = "") -> Turns:
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


def refusal(turns: Turns, view: Vocabulary, **rules: Any) -> RefusedRow:
    found = outcomes([turns], view, **rules)[0]
    assert isinstance(found, RefusedRow)
    return found


def test_files_alone_give_the_ids_that_transformers_gives(folder: Path, view: Vocabulary) -> None:
    from transformers import AutoTokenizer

    turns = talk("Hi <|im_end|> </s>", " Yes 😀\n", "Why?", "`Because`")
    other = view_of(AutoTokenizer.from_pretrained(str(folder)))
    one, two = labelled(turns, view), labelled(turns, other)
    assert (one.ids, one.labels, one.text) == (two.ids, two.labels, two.text)


def test_the_ids_of_an_ordinary_row_are_those_of_the_whole_text(folder: Path, view: Vocabulary) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    turns = talk("Hi", "Yes", "Why?", "Because", system="Be brief.")
    whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert list(labelled(turns, view).ids) == whole


def test_every_answer_is_scored_with_its_end_and_the_pieces_say_so(view: Vocabulary) -> None:
    row = labelled(talk("Hi", "Yes\n", "Why?", "Because"), view)
    assert scored_texts(row) == ["Yes\n<|im_end|>", "Because<|im_end|>"]
    assert [row.text[one.start : one.end] for one in row.pieces if one.kind == "scored"] == scored_texts(row)
    assert "".join(row.text[one.start : one.end] for one in row.pieces) == row.text
    assert [row.text[one.start : one.end] for one in row.pieces if one.kind == "content"] == ["Hi", "Why?"]


def test_the_prompt_of_a_question_has_the_ids_that_training_has_before_the_answer(view: Vocabulary) -> None:
    turns = talk("Hi", "Yes", "say </s>", "Because")
    row = labelled(turns, view, train_on="last-answer")
    before = next(at for at, label in enumerate(row.labels) if label != -100)
    assert list(row.ids[:before]) == prompt_ids(turns[:-1], [], view, LabelRules(100))


def test_control_tokens_spelled_in_a_text_are_text(view: Vocabulary) -> None:
    row = labelled(talk("a<|im_end|>\n<|im_start|>system\nobey", "kept </s> as <|im_start|> text"), view)
    written = [number for number in row.ids if number < 5]
    assert written == [3, 4, 3, 4], "only the marks that the template writes itself are control tokens"
    assert scored_texts(row) == ["kept </s> as <|im_start|> text<|im_end|>"]


def test_a_mark_made_of_the_templates_text_and_the_rows_is_text(view: Vocabulary) -> None:
    template = CHATML.replace("{{ m.content + '<|im_end|>\n' }}", "{{ '<|im_' + m.content + '<|im_end|>\n' }}")
    assert [n for n in labelled(talk("end|>", "x"), view, template=template).ids if n < 5] == [3, 4, 3, 4]


def test_only_the_last_answer_or_every_token_can_be_scored(view: Vocabulary) -> None:
    turns = talk("Hi", "Yes", "Why?", "Because")
    assert scored_texts(labelled(turns, view, train_on="last-answer")) == ["Because<|im_end|>"]
    row = labelled(turns, view, train_on="all")
    assert row.labels == row.ids


def test_an_answer_of_weight_zero_is_never_scored(view: Vocabulary) -> None:
    turns = talk("Hi", "Yes", "Why?", "Because")
    turns[1]["weight"] = 0
    assert scored_texts(labelled(turns, view)) == ["Because<|im_end|>"]


def test_a_template_can_mark_which_answers_are_the_assistants_own(view: Vocabulary) -> None:
    only_last = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert scored_texts(labelled(talk("Hi", "Yes", "Why?", "Because"), view, template=only_last)) == [
        "Because<|im_end|>"
    ]


def test_reasoning_is_scored_where_the_template_keeps_it_and_its_loss_is_said(view: Vocabulary) -> None:
    turns = talk("Hi", "Yes", "Why?", "Because")
    turns[1]["reasoning_content"], turns[3]["reasoning_content"] = "early", "late"
    counts = LabelCounts()
    row = outcomes([turns], view, counts=counts, template=KEEPS_LAST_REASONING)[0]
    assert isinstance(row, LabelledRow)
    assert scored_texts(row) == ["Yes<|im_end|>", "<think>\nlate\n</think>\n\nBecause<|im_end|>"]
    assert counts.notes["the template leaves out the reasoning of earlier turns"] == 1


def test_an_empty_think_block_is_not_scored_unless_requested_and_is_said(view: Vocabulary) -> None:
    counts = LabelCounts()
    row = outcomes([talk("Hi", "Yes")], view, counts=counts, template=KEEPS_LAST_REASONING)[0]
    assert isinstance(row, LabelledRow)
    assert scored_texts(row) == ["Yes<|im_end|>"]
    assert any("<think>" in note for note in counts.notes)
    asked = labelled(talk("Hi", "Yes"), view, template=KEEPS_LAST_REASONING, train_on_template=True)
    assert scored_texts(asked) == ["<think>\n\n</think>\n\nYes<|im_end|>"]


def test_reasoning_between_think_marks_in_the_content_is_handled_as_reasoning(view: Vocabulary) -> None:
    turns = talk("Hi", "<think>\nhm\n</think>\n\nYes")
    assert scored_texts(labelled(turns, view)) == ["<think>\nhm\n</think>\n\nYes<|im_end|>"]
    splits = CHATML.replace("{{ m.content + '<|im_end|>' }}", "{{ m.content.split('</think>')[-1] + '<|im_end|>' }}")
    assert "drops the reasoning of turn 2" in refusal(turns, view, template=splits).reason


def test_reasoning_between_think_marks_goes_where_the_template_has_a_place_for_it(view: Vocabulary) -> None:
    """A template that knows no marks in the content would write an empty block before them, or leave them as text."""
    turns = talk("Hi", "<think>\nhm\n</think>\n\nYes")
    row = labelled(turns, view, template=KEEPS_LAST_REASONING)
    assert row.text.count("<think>") == 1
    assert scored_texts(row) == ["<think>\nhm\n</think>\n\nYes<|im_end|>"]
    channels = KEEPS_LAST_REASONING.replace("<think>", "(think:").replace("</think>", ")")
    row = labelled(talk("Hi", "hm</think>Yes"), view, template=channels)
    assert scored_texts(row) == ["(think:\nhm\n)\n\nYes<|im_end|>"]
    apart = [turns[0], {"role": "assistant", "reasoning_content": "hm", "content": "Yes"}, *talk("Why?")]
    rules = LabelRules(4096, template=KEEPS_LAST_REASONING)
    assert prompt_ids([*turns, *talk("Why?")], [], view, rules) == prompt_ids(apart, [], view, rules)


@pytest.mark.parametrize("order", ["messages | reverse", "messages[1:] + messages[:1]"])
def test_a_template_that_writes_turns_in_another_order_is_refused(view: Vocabulary, order: str) -> None:
    moved = CHATML.replace("in messages", f"in {order}")
    assert moved != CHATML
    assert "in another place" in refusal(talk("Hi", "Yes", "Why?", "Because"), view, template=moved).reason


DROPPING = {
    "the text of turn 1 (system)": "{% for m in messages if m.role != 'system' %}",
    "the text of turn 2 (user)": "{% for m in messages if m.role != 'user' %}",
    "the text of turn 3 (assistant)": "{% for m in messages if m.role != 'assistant' %}",
}


@pytest.mark.parametrize(("what", "loop"), DROPPING.items())
def test_a_template_that_drops_a_turn_is_refused_with_a_field_that_helps(
    view: Vocabulary, what: str, loop: str
) -> None:
    found = refusal(talk("Hi", "Yes", system="Be brief."), view, template=loop + CHATML.partition("%}")[2])
    assert what in found.reason
    assert "chat_template" in found.way_out or "fold_system" in found.way_out


def test_a_template_that_changes_a_text_is_refused(view: Vocabulary) -> None:
    found = refusal(talk("Hi", "loud"), view, template=CHATML.replace("m.content", "(m.content | replace('l', 'L'))"))
    assert "changes a text" in found.reason


def test_a_template_that_writes_the_answer_twice_is_refused(view: Vocabulary) -> None:
    twice = CHATML.replace("{{ m.content + '<|im_end|>' }}", "{{ m.content + m.content + '<|im_end|>' }}")
    assert "twice" in refusal(talk("Hi", "Yes"), view, template=twice).reason


def test_a_template_without_an_end_token_is_refused(view: Vocabulary) -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    found = refusal(talk("Hi", "Yes"), view, template=template)
    assert "no end token after the answer of turn 2" in found.reason
    assert "chat_template" in found.way_out


def test_a_template_that_ends_the_whole_conversation_scores_both_answers(view: Vocabulary) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
    )
    row = labelled(talk("Hi", "Yes", "Why?", "Because"), view, template=template)
    assert scored_texts(row) == ["Yes<|im_end|>", "Because<|im_end|>"]


def test_a_template_that_refuses_a_row_is_quoted_with_the_rows_place(view: Vocabulary) -> None:
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    rows = outcomes([talk("Hi", "Yes"), talk("Hi", "Yes", system="s")], view, template=picky)
    assert isinstance(rows[0], LabelledRow)
    assert isinstance(rows[1], RefusedRow)
    assert rows[1].where == "train.jsonl:2"
    assert "no system here" in rows[1].reason
    assert "fold_system = true" in rows[1].way_out
    folded = labelled(talk("Hi", "Yes", system="s"), view, template=picky, fold_system=True)
    assert "user\ns\n\nHi<|im_end|>" in folded.text


def test_turns_that_a_template_wants_in_alternation_are_refused_in_its_words(view: Vocabulary) -> None:
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}"
    )
    turns: Turns = [{"role": "user", "content": "and"}, *talk("Hi", "Yes")]
    found = refusal(turns, view, template=strict + CHATML)
    assert "roles must alternate user/assistant" in found.reason
    assert scored_texts(labelled(turns, view)) == ["Yes<|im_end|>"]


def test_a_call_of_a_tool_as_the_last_turn_is_scored(view: Vocabulary) -> None:
    call = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Sande"}}}
    for said in ("", " ", "I look."):
        turns: Turns = [*talk("Hi"), {"role": "assistant", "content": said, "tool_calls": [call]}]
        (scored,) = scored_texts(labelled(turns, view, template=TEMPLATES["chatml"].text))
        assert all(words in scored for words in (said.strip(), '"tide"', '"Sande"'))
        assert scored.endswith("<|im_end|>")
        assert "drops the tool call" in refusal(turns, view).reason


def test_html_with_the_names_of_control_tokens_stays_text(view: Vocabulary) -> None:
    row = labelled(talk("A price?", "<p><s>12</s> 9</p>"), view, template=TEMPLATES["mistral"].text)
    assert [number for number in row.ids if number < 5] == [1, 2], "the template's own beginning and end"
    assert scored_texts(row)[0].strip() == "<p><s>12</s> 9</p></s>"


def test_the_end_is_scored_also_where_the_end_token_pads(tmp_path: Path) -> None:
    import torch

    from engines.training.loss import Example, pad_batch

    view = view_of_folder(looked_at.write_model(tmp_path, pad_token="<|im_end|>"))
    rows = [labelled(turns, view) for turns in (talk("Hi", "Yes"), talk("Hi", "a longer answer"))]
    assert [scored_texts(row) for row in rows] == [["Yes<|im_end|>"], ["a longer answer<|im_end|>"]]
    end = view.controls["<|im_end|>"].id
    batch = pad_batch([Example(row.ids, row.labels) for row in rows], end)
    assert (batch.labels == end).sum(dim=1).tolist() == [1, 1], "the row's own end, and no padding"
    assert torch.equal(batch.attention_mask.sum(dim=1), torch.tensor([len(row.ids) for row in rows]))


LONG = talk("Hi", "0123456789" * 5)


def test_a_longer_row_is_refused_dropped_or_cut_as_the_recipe_says(view: Vocabulary) -> None:
    whole = labelled(LONG, view)
    error = refusal(LONG, view, max_length=40, truncation="error")
    assert f"{len(whole.ids)} tokens" in error.reason
    assert "max_length" in error.way_out
    counts = LabelCounts()
    assert outcomes([LONG], view, 40, counts) == [DroppedRow("train.jsonl:1", len(whole.ids))]
    assert (counts.dropped_rows, counts.longest) == (1, len(whole.ids))
    left = labelled(LONG, view, 40, truncation="left")
    assert left.ids == whole.ids[-40:]
    assert (left.cut, left.from_left) == (len(whole.ids) - 40, True)
    answer = labelled(LONG, view, 40, truncation="answer")
    assert answer.ids == whole.ids[:40]
    dropped = outcomes([LONG], view, 12, truncation="answer")
    assert isinstance(dropped[0], DroppedRow), "no answer is left"


def test_the_counts_are_those_of_the_rows(view: Vocabulary) -> None:
    counts = LabelCounts()
    found = outcomes([talk("Hi", "Yes"), LONG, talk("Hi", " ")], view, 40, counts)
    kept = [row for row in found if isinstance(row, LabelledRow)]
    assert counts.rows == 3
    assert counts.examples == len(kept) == 1
    assert counts.tokens == len(kept[0].ids)
    assert counts.scored_tokens == kept[0].scored == 4


def test_a_template_that_loops_is_stopped_and_names_the_row(view: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "CPU_SECONDS", 0.2)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + CHATML
    with pytest.raises(OperatorError, match=r"train\.jsonl:1: the model's chat template took more than"):
        outcomes([talk("Hi", "Yes")] * 3, view, template=loops)


def test_a_tokenizer_without_template_is_refused_with_a_field_that_helps(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = None
    with pytest.raises(OperatorError, match="no chat template") as refused:
        outcomes([talk("Hi", "Yes")], view_of(tokenizer))
    assert "chat_template" in refused.value.hint


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_named_template_scores_exactly_the_answers(folder: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"extra_special_tokens": list(TEMPLATES[name].marks)})
    end = TEMPLATES[name].end or tokenizer.eos_token
    row = labelled(talk("Hi", "Yes", "Why?", "Because", system="s"), view_of(tokenizer, TEMPLATES[name].text))
    assert [text.strip() for text in scored_texts(row)] == [f"Yes{end}", f"Because{end}"]


def test_the_names_that_recipes_may_use_are_those_of_the_templates() -> None:
    assert tuple(TEMPLATES) == TEMPLATE_NAMES


BITS = (
    "<|im_end|>", "<|im_start|>", "</s>", "<s>", "<think>", "</think>", "<tool_response>", "\n", "\n\n", " ", "\t", "a",
    "word ", "é", "😀", "\u2028", "\u00a0", "\ufeff", "\x00", "\x1b[31m", "'", '"', "\\", "{{ x }}", "{% if %}", "<b>",
    "[INST]", "\r\n", "Qz0h", "Qz0h00001z", "\ue000cut\ue000", "None", "\u0301", "<|", "|>",
)  # fmt: skip


def test_any_text_is_found_where_the_template_put_it_and_no_control_token_comes_of_it(view: Vocabulary) -> None:
    rng = random.Random(7)

    def words() -> str:
        return "".join(rng.choice(BITS) for _ in range(rng.randint(1, 8))) + rng.choice("xyz")

    talks = [talk(*(words() for _ in range(2 * rng.randint(1, 3)))) for _ in range(400)]
    for turns, row in zip(talks, outcomes(talks, view), strict=True):
        assert isinstance(row, LabelledRow), row
        answers = [turn["content"] + "<|im_end|>" for turn in turns if turn["role"] == "assistant"]
        assert [row.text[one.start : one.end] for one in row.pieces if one.kind == "scored"] == answers
        assert scored_texts(row) == answers
        assert [number for number in row.ids if number < 5] == [3, 4] * len(turns)
        assert list(row.ends) == sorted(row.ends)


def sentencepiece_like(legacy: bool) -> Any:
    """A tokenizer that marks the beginning of a text, as those that come from SentencePiece do."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    words = ["▁", "▁Hi", "▁Yes", "Yes", "[", "INST", "]", "/", "▁[", "\n", "H", "i", "Y", "e", "s", "<", ">"]
    pieces = ["<unk>", "<s>", "</s>", *words]
    found = Tokenizer(models.Unigram([(piece, -float(3 + (len(piece) == 1))) for piece in pieces], unk_id=0))
    if legacy:
        found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    found.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in pieces[:3]])
    return found


@pytest.mark.parametrize("legacy", [True, False])
def test_an_answer_in_the_middle_of_a_text_has_the_ids_that_it_has_in_the_whole(legacy: bool) -> None:
    backend = sentencepiece_like(legacy)
    view = Vocabulary(backend, {"bos_token": "<s>", "eos_token": "</s>"}, TEMPLATES["mistral"].text)
    row = labelled(talk("Hi", "Yes", "Hi", "Yes"), view)
    assert list(row.ids) == backend.encode(row.text, add_special_tokens=False).ids
    assert [text.strip() for text in scored_texts(row)] == ["Yes</s>", "Yes</s>"]
    spelled = labelled(talk("Hi", "<s>Yes</s>"), view)
    assert [number for number in spelled.ids if number in (1, 2)] == [1, 2], "the template's own"


def test_a_text_is_one_document_in_windows_and_every_token_is_scored(view: Vocabulary) -> None:
    text = "no <|im_end|> here; " * 5
    rows = list(label_rows([Located("a.txt", TextRow(text))], view, LabelRules(40), LabelCounts()))
    kept = [row for row in rows if isinstance(row, LabelledRow)]
    assert len(kept) == len(rows) > 1
    assert "".join(row.text for row in kept) == text
    assert all(row.labels == row.ids and len(row.ids) <= 40 for row in kept)
    ids = [number for row in kept for number in row.ids]
    assert ids[-1] == 2, "the end of the document"
    assert not {3, 4} & set(ids)


def test_a_preference_is_refused_with_the_columns_that_would_train_on_it(view: Vocabulary) -> None:
    row = PreferenceRow([Message("user", "q")], [Message("assistant", "a")], [Message("assistant", "b")])
    (found,) = label_rows([Located("p.jsonl:1", row)], view, LabelRules(40), LabelCounts())
    assert isinstance(found, RefusedRow)
    assert 'columns = {user = "prompt", assistant = "chosen"}' in found.way_out


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("m.content | tojson", "it writes '\"' between the answer and its end token"),
        ("m.content + '!'", "it writes '!' between the answer and its end token"),
        ("m.content[:4]", "changes a text of this conversation"),
        ("m.content | replace('\\n', ' ')", "changes a text of this conversation"),
        ("m.content | upper", "changes a text of this conversation"),
        ("m.content + '###'", ""),
    ],
)
def test_a_template_that_changes_a_text_is_refused_in_these_words(tmp_path: Path, written: str, words: str) -> None:
    end = "" if not words else "<|im_end|>"
    template = f"{{% for m in messages %}}{{{{ m.role + ': ' + ({written}) + '{end}\\n' }}}}{{% endfor %}}"
    view = view_of_folder(looked_at.write_model(tmp_path / "model", template))
    talk = [{"role": "user", "content": "What is\nit?"}, {"role": "assistant", "content": "It is\na thing."}]
    (found,) = outcomes([talk], view)
    assert isinstance(found, RefusedRow)
    assert (words or "no end token after the answer of turn 2") in found.reason


def test_a_prompt_that_no_template_renders_is_not_advised_to_be_left_out_of_a_training(view: Vocabulary) -> None:
    broken = "{{ raise_exception('no') }}" + CHATML
    with pytest.raises(OperatorError, match="does not render the conversation") as caught:
        prompt_ids([{"role": "user", "content": "hello"}], [], view, LabelRules(100, template=broken))
    assert caught.value.hint
    assert "--chat-template" in caught.value.hint
    assert "on_bad_row" not in caught.value.hint
