"""The data door: every shape of a row is found and read, and what is not understood is refused by name."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.data.door import (
    DataSource,
    ReadCounts,
    read_conversations,
    read_rows,
)
from engines.data.readers.messages import message_row, quick_row
from engines.data.readers.reading import Reading
from engines.data.readers.row import MessageRow, PreferenceRow, TextRow
from recipes.problems import OperatorError
from recipes.stages.data_fields import condition_of
from tests.engines.data.door_rows import CALL, GOOD, TOOL, put, refusal, row_of, rows_of, turns

PAIR = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, PAIR),
        ({"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}, PAIR),
        ({"messages": json.dumps([{"role": role, "content": text} for role, text in PAIR])}, PAIR),
        ({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, PAIR),
        (
            {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            [("system", "s"), *PAIR],
        ),
        ({"instruction": "q", "input": None, "output": "a"}, PAIR),
        ({"instruction": "q", "input": "", "output": "a"}, PAIR),
        ({"instruction": "q", "input": "more", "output": "a"}, [("user", "q\nmore"), ("assistant", "a")]),
        ({"instruction": "q2", "output": "a2", "history": [["q", "a"]]}, [*PAIR, ("user", "q2"), ("assistant", "a2")]),
        ({"prompt": "q", "completion": "a"}, PAIR),
        ({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}, PAIR),
        (
            {"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"},
            PAIR,
        ),
        (
            {"messages": [{"role": "developer", "content": "s"}, *({"role": r, "content": t} for r, t in PAIR)]},
            [("system", "s"), *PAIR],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "q"}]},
                    {"role": "assistant", "content": "a"},
                ]
            },
            PAIR,
        ),
    ],
)
def test_each_shape_is_found_and_read(tmp_path: Path, value: Any, expected: list[tuple[str, str]]) -> None:
    assert turns(row_of(tmp_path, value)) == expected


def test_tool_calls_have_one_form_however_they_are_written(tmp_path: Path) -> None:
    as_text = {"type": "function", "function": {"name": "tide", "arguments": '{"port": "Sande"}'}}
    bare = {"name": "tide", "arguments": {"port": "Sande"}}
    shapes: list[Any] = [
        {
            "tools": [TOOL],
            "messages": [GOOD["messages"][0], {"role": "assistant", "content": None, "tool_calls": [call]}],
        }
        for call in (CALL, as_text, bare)
    ]
    shapes.append(
        {
            "tools": json.dumps([TOOL["function"]]),
            "conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(bare)}],
        }
    )
    found = [row_of(tmp_path, value) for value in shapes]
    assert all(isinstance(row, MessageRow) and row.messages[-1].tool_calls == [CALL] for row in found)
    assert all(isinstance(row, MessageRow) and row.tools == [TOOL] for row in found)
    assert isinstance(found[0], MessageRow)
    assert found[0].as_dicts()[-1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_what_is_not_to_be_learnt_keeps_its_mark(tmp_path: Path) -> None:
    bad = {"role": "assistant", "content": "wrong", "weight": 0}
    row = row_of(tmp_path, {"messages": [GOOD["messages"][0], bad, *GOOD["messages"]]})
    assert isinstance(row, MessageRow)
    assert [turn.weight for turn in row.messages] == [1, 0, 1, 1]
    context = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"},
    ]
    row = row_of(tmp_path, {"prompt": context, "completion": "b"})
    assert isinstance(row, MessageRow)
    assert [turn.weight for turn in row.messages] == [1, 0, 1, 1]


def test_reasoning_tool_results_and_names_stay_with_their_turn(tmp_path: Path) -> None:
    value = [
        {"role": "user", "content": "q", "name": "ada"},
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "c1"}]},
        {"role": "tool", "content": "2 m", "tool_call_id": "c1"},
        {"role": "assistant", "content": "a", "reasoning_content": "because"},
    ]
    row = row_of(tmp_path, {"messages": value})
    assert isinstance(row, MessageRow)
    assert row.as_dicts() == value


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
        {
            "prompt": "q",
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
        },
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
    ],
)
def test_preferences_are_read_and_a_stage_that_wants_conversations_refuses_them(tmp_path: Path, value: Any) -> None:
    row = row_of(tmp_path, value)
    assert isinstance(row, PreferenceRow)
    assert [turn.content for turn in (*row.prompt, *row.chosen, *row.rejected)] == ["q", "a", "b"]
    with pytest.raises(OperatorError, match=r"one\.jsonl:1: a row with chosen and rejected"):
        next(read_conversations(DataSource(tmp_path / "one.jsonl"), ""))


def test_a_text_is_a_row_of_its_own_kind(tmp_path: Path) -> None:
    assert row_of(tmp_path, {"text": "once upon", "category": "tale"}) == TextRow("once upon", category="tale")
    chatml = "<|im_start|>user\nq<|im_end|>"
    assert row_of(tmp_path, {"text": chatml}, format="text") == TextRow(chatml)


def test_columns_make_a_conversation_of_any_object(tmp_path: Path) -> None:
    value = {
        "id": "int-1",
        "task": {"description": "q", "priority": 3, "category": "io"},
        "agent": {"role": "coder", "model": None},
        "execution": {"output": "a"},
    }
    columns = {
        "user": "task.description",
        "assistant": "execution.output",
        "system": "agent.role",
        "category": "task.category",
        "group": "task.description",
    }
    counts = ReadCounts()
    file = put(tmp_path / "one.jsonl", value)
    (located,) = read_rows(DataSource(file, columns=columns), "", counts)
    assert turns(located.row) == [("system", "coder"), *PAIR]
    row = located.row
    assert (row.id, row.category, row.group) == ("int-1", "io", "q")
    assert counts.unused_columns == {"task.priority": 1, "agent.model": 1}
    assert "execution.output is missing" not in counts.skipped
    del value["execution"]
    assert "execution.output — the row has no such value" in refusal(tmp_path, value, columns=columns)


def test_columns_rename_a_key_of_a_known_shape(tmp_path: Path) -> None:
    value = {"chat": GOOD["messages"], "source": 7}
    row = row_of(tmp_path, value, columns={"messages": "chat", "group": "source"})
    assert isinstance(row, MessageRow)
    assert (row.answer, row.group) == ("größer", "7")
    pair = {"question": "q", "good": "a", "bad": "b"}
    lines_of = {"q": "q", "ctx": "more", "a": "a"}
    row = row_of(tmp_path, lines_of, columns={"instruction": "q", "input": "ctx", "output": "a"})
    assert turns(row) == [("user", "q\nmore"), ("assistant", "a")]
    row = row_of(tmp_path, {**GOOD, "rules": "s"}, columns={"system": "rules"})
    assert turns(row)[0] == ("system", "s")
    row = row_of(tmp_path, pair, columns={"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert isinstance(row, PreferenceRow)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"messages": [{"role": "user", "content": "q", "mood": "x"}]}, "messages[0].mood — Cockpit does not know"),
        ({"messages": [{"role": "user", "content": "q", "mood": "x"}]}, 'set ignore_keys = ["mood"]'),
        ({**GOOD, "images": ["a.png"]}, "images — the row has pictures"),
        ({**GOOD, "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs — the row has arguments"),
        ({"prompt": "q", "completion": "a", "label": True}, "label — the row has a judgement of KTO"),
        ({"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": ""}]}, "turn 2 has no content"),
        (
            {"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "a", "weight": 0.5}]},
            "allowed 0 and 1",
        ),
        ({"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "a", "weight": 0}]}, "has weight 0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "type image_url"),
        ({"conversations": [{"from": "alien", "value": "q"}]}, "role — got 'alien'"),
        ({"text": "<|im_start|>user\nq<|im_end|> and more"}, "text outside of a turn"),
        ({"text": "<|im_start|>user\nq"}, "has no <|im_end|>"),
        ({"instruction": "q", "output": 7}, "output — got a number 7; allowed text"),
        ({"question": "q", "answer": "a"}, 'columns = {user = "question", assistant = "answer"}'),
        ({"messages": [{"role": "system", "content": "s"}], "system": "t"}, "has system and a system turn"),
        ({"version": 1, "data": [{"question": "q"}]}, "if its rows are in data, save that list as the file"),
        ({**GOOD, "id": 1.5}, 'set ignore_keys = ["id"]'),
        ({"text": " "}, "the text is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
    ],
)
def test_a_key_or_a_value_that_is_not_understood_is_refused_by_name(tmp_path: Path, value: Any, says: str) -> None:
    assert says in refusal(tmp_path, value)


def test_a_key_that_the_recipe_ignores_is_counted(tmp_path: Path) -> None:
    value = {**GOOD, "images": ["a.png"], "note": 1}
    value["messages"] = [{**GOOD["messages"][0], "mood": "x"}, GOOD["messages"][1]]
    counts = ReadCounts()
    source = DataSource(put(tmp_path / "a.jsonl", value), ignore_keys=("images", "mood"))
    (located,) = read_rows(source, "", counts)
    assert turns(located.row)[0] == ("user", "q")
    assert counts.ignored_keys["images"] == 1
    assert counts.unused_columns == {"note": 1}
    assert any("note (1)" in note for note in counts.notes())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("run.success = true", [0, 2]),
        ("run.success != true", [1, 3]),
        ("run.score >= 2", [1, 2]),
        ('run.score < "z"', []),
        ("run.score = 1", [0]),  # true is not the number 1
        ("run.success = 1", []),
        ("run = null", [3]),
        ('messages.0.content = "q1"', [1]),
        ('messages.-1.role != "user"', [0, 1, 2, 3]),
        ('note = "a = b < c"', [2]),
    ],
)
def test_only_rows_that_satisfy_the_conditions_are_read_and_the_others_are_counted(
    tmp_path: Path, text: str, kept: list[int]
) -> None:
    runs: list[dict[str, Any]] = [
        {"run": {"success": True, "score": 1}},
        {"run": {"success": False, "score": 2.5}},
        {"run": {"success": True, "score": 3}, "note": "a = b < c"},
        {},
    ]
    rows = [
        {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}], **run}
        for number, run in enumerate(runs)
    ]
    counts = ReadCounts()
    source = DataSource(put(tmp_path / "a.jsonl", *rows), where=(condition_of(text),))
    found = [turns(located.row)[0][1] for located in read_rows(source, "", counts)]
    assert found == [f"q{number}" for number in kept]
    assert (counts.rows, counts.filtered) == (len(kept), 4 - len(kept))
    if counts.filtered:
        assert f"{counts.filtered} rows do not satisfy where, and {len(kept)} do" in counts.notes()


@pytest.mark.parametrize(
    "text", ["", "a", "a = ", "a == 1", "a = [1]", "a = b", "__import__('os') = 1 or 1", "a..b = 1", "a = 1 and b = 2"]
)
def test_what_is_no_condition_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"where — not a condition; .*task\.score >= 3"):
        condition_of(text)


def test_a_path_enters_lists_and_turns_may_stand_in_two_columns(tmp_path: Path) -> None:
    row = row_of(tmp_path, GOOD, columns={"user": "messages.0.content", "assistant": "messages.-1.content"})
    assert turns(row) == [(turn["role"], turn["content"]) for turn in GOOD["messages"]]
    with pytest.raises(OperatorError, match=r"messages\.7\.content — the row has no such value"):
        row_of(tmp_path, GOOD, columns={"user": "messages.7.content", "assistant": "messages.1.content"})
    pair = {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    row = row_of(tmp_path, pair, columns={"user": "prompt", "assistant": "chosen"})
    assert turns(row) == [("system", "s"), ("user", "q"), ("assistant", "a")]


def test_a_first_line_may_name_the_separator(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for first, mark in (("sep=;\n", ";"), ('"sep=|"\r\n', "|"), ("SEP=,\n", ",")):
        file.write_text(f"{first}prompt{mark}completion\nq{mark}a\n")
        assert turns(rows_of(file)[0]) == [("user", "q"), ("assistant", "a")]


def test_rows_of_a_giant_text_that_a_table_stores_once_are_not_all_in_memory(tmp_path: Path) -> None:
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    table = arrow.table({"prompt": ["q" * 1_000_000] * 300, "completion": ["a"] * 300})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1_000_000
    before = arrow.total_allocated_bytes()
    most = 0
    for number, _ in enumerate(read_rows(DataSource(tmp_path / "a.parquet"), "", ReadCounts())):
        most = max(most, arrow.total_allocated_bytes() - before)
        if number == 40:
            break
    assert most < 64 * 1024 * 1024


def test_a_row_of_another_shape_than_its_files_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", GOOD, {"instruction": "q", "output": "a"})
    with pytest.raises(OperatorError, match=r"a\.jsonl:2: not a row of messages.*keys are instruction, output"):
        rows_of(file)


TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "gpt"]), "content": st.text(max_size=6)},
        optional={"weight": st.just(0), "name": st.text(max_size=3)},
    ),
    max_size=4,
)
MARKS = {"id": st.text(max_size=3), "category": st.text(max_size=3), "question": st.text(max_size=2)}


@given(st.fixed_dictionaries({"messages": TURNS}, optional=MARKS), st.booleans(), st.data())
@settings(max_examples=50)
def test_the_fast_way_gives_the_same_row_or_none_and_never_misses_a_key_that_is_twice(
    value: dict[str, Any], ascii_only: bool, data: st.DataObject
) -> None:
    line = json.dumps(value, ensure_ascii=ascii_only)
    row = quick_row(line.encode())
    if row is not None:
        assert row == message_row(value, Reading())
    inner = data.draw(st.sampled_from(['"messages"', '"role"', '"content"', '"id"']))
    doubled = line.replace(f"{inner}: ", f'{inner}: "user", {inner}: ', 1)
    if doubled != line:
        assert quick_row(doubled.encode()) is None


def test_the_fast_way_is_taken_for_plain_rows() -> None:
    assert quick_row(json.dumps({**GOOD, "category": 'a "b" \n'}).encode()) is not None
    assert quick_row(b'{"messages": [{"role": "user"}, {"role": "assistant", "content": "a", "content": "b"}]}') is None
