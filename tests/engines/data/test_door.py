"""The door for data: places, splits, containers, shapes, and what happens to a row that cannot be used."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.data.door import (
    DataSource,
    Located,
    ReadCounts,
    read_conversations,
    read_rows,
    source_of_stage,
    splits_in,
)
from engines.data.readers import lines
from engines.data.readers.messages import message_row, quick_row
from engines.data.readers.reading import Reading
from engines.data.readers.row import MessageRow, PreferenceRow, Row, TextRow
from engines.inputs.data_place import data_files, split_of
from recipes.problems import OperatorError
from recipes.stages.data_fields import condition_of
from recipes.stages.finetune import FinetuneStage
from tests.engines.data.bad_rows import problems_in

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "größer"}]}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Sande"}}}
TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}


def put(file: Path, *rows: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def rows_of(place: Path, split: str = "", **fields: Any) -> list[Row]:
    return [located.row for located in read_rows(DataSource(place, **fields), split, ReadCounts())]


def row_of(tmp_path: Path, value: Any, **fields: Any) -> Row:
    (row,) = rows_of(put(tmp_path / "one.jsonl", value), **fields)
    return row


def turns(row: Row) -> list[tuple[str, str]]:
    assert isinstance(row, MessageRow)
    return [(turn.role, turn.content) for turn in row.messages]


def refusal(tmp_path: Path, value: Any, **fields: Any) -> str:
    with pytest.raises(OperatorError) as raised:
        row_of(tmp_path, value, **fields)
    return f"{raised.value.message} | {raised.value.hint}"


# ---- shapes


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


# ---- bad rows


def test_bad_rows_are_left_out_and_counted_or_all_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines_ = [json.dumps(GOOD), "{oops", json.dumps(GOOD), '{"messages": []}', '{"messages": [], "messages": []}']
    file.write_text("\n".join(lines_))
    counts = ReadCounts()
    kept = list(read_rows(DataSource(file, on_bad_row="skip"), "", counts))
    assert [located.where for located in kept] == [f"{file}:1", f"{file}:3"]
    assert (counts.rows, counts.refused) == (5, 3)
    assert counts.examples[0].startswith(f"{file}:2: not JSON")
    assert counts.formats == {str(file): "messages in JSON Lines"}
    problems = problems_in(DataSource(file))
    assert [bad.where for bad in problems.found] == [f"{file}:2", f"{file}:4", f"{file}:5"]
    assert "the key messages twice" in counts.examples[2]


def test_one_odd_file_among_others_is_a_bad_row_and_an_odd_first_file_ends_the_reading(tmp_path: Path) -> None:
    for number, row in enumerate([GOOD, {"error": "timeout"}, GOOD]):
        put(tmp_path / f"{number}.json", row)
    counts = ReadCounts()
    assert len(list(read_rows(DataSource(tmp_path, on_bad_row="skip"), "train", counts))) == 2
    assert counts.skipped == {"a row of no known format": 1}
    put(tmp_path / "0.json", {"error": "timeout"})
    with pytest.raises(OperatorError, match=r"0\.json:1: no format that Cockpit knows"):
        rows_of(tmp_path, on_bad_row="skip")


def test_the_kinds_of_mistakes_are_counted_without_their_values(tmp_path: Path) -> None:
    bad = [{"messages": [GOOD["messages"][0], {"role": "robot", "content": f"{n}"}], "id": str(n)} for n in range(30)]
    counts = ReadCounts()
    assert list(read_rows(DataSource(put(tmp_path / "a.jsonl", *bad), on_bad_row="skip"), "", counts)) == []
    assert counts.skipped == {"an unknown role": 30}
    assert len(counts.examples) == 20


def test_a_line_that_is_too_long_is_named_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 4096)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps({"text": "x" * 3_000_000}) + "\n" + json.dumps(GOOD) + "\n")
    problems = problems_in(DataSource(file), "")
    assert [(bad.where, bad.reason) for bad in problems.found] == [(f"{file}:2", "a row is too long")]
    assert problems.counts.rows == 3


# ---- containers and encodings


def tables() -> tuple[Any, Any, Any]:
    """pyarrow, with its modules for Arrow and Parquet files."""
    return import_module("pyarrow"), import_module("pyarrow.ipc"), import_module("pyarrow.parquet")


ROWS = [{"prompt": f"q{number}", "completion": 'größer, "x"\nö'} for number in range(700)]


def write_as(folder: Path, kind: str, rows: Sequence[dict[str, Any]]) -> Path:
    file = folder / f"rows.{kind}"
    lines_ = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if kind == "json":
        file.write_text(json.dumps(rows, indent=1))
    elif kind in ("jsonl", "ndjson"):
        file.write_text(lines_)
    elif kind == "jsonl.gz":
        file.write_bytes(gzip.compress(lines_.encode()))
    elif kind in ("csv", "tsv"):
        import csv

        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["prompt", "completion"], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow, ipc, parquet = tables()
        table = pyarrow.Table.from_pylist(list(rows))
        if kind == "parquet":
            parquet.write_table(table, file, row_group_size=300)
        else:
            with ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
    return file


@pytest.mark.parametrize("kind", ["json", "jsonl", "ndjson", "jsonl.gz", "csv", "tsv", "parquet", "arrow"])
def test_every_container_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    expected = [[("user", row["prompt"]), ("assistant", row["completion"])] for row in ROWS]
    assert [turns(row) for row in rows_of(write_as(tmp_path, kind, ROWS))] == expected


def test_rows_of_a_table_are_numbered_and_its_empty_cells_are_no_keys(tmp_path: Path) -> None:
    pyarrow, _, parquet = tables()
    plain = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1}]
    rows = [{"messages": plain, "images": None}, {"messages": [*plain[:1], {"role": "assistant", "content": ""}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert turns(rows_of(tmp_path / "a.parquet", on_bad_row="skip")[0]) == PAIR
    with pytest.raises(OperatorError, match=r"a\.parquet: row 2: the assistant's turn 2 has no content"):
        rows_of(tmp_path / "a.parquet")


def test_a_json_array_may_be_named_jsonl_and_an_object_may_fill_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps([GOOD, GOOD], indent=2))
    counts = ReadCounts()
    found = list(read_rows(DataSource(tmp_path / "a.jsonl"), "", counts))
    assert [located.where.rpartition(":")[2] for located in found] == ["3", "15"]
    assert counts.formats == {str(tmp_path / "a.jsonl"): "messages in a JSON array"}
    (tmp_path / "b.json").write_text(json.dumps(GOOD, indent=2))
    assert len(rows_of(tmp_path / "b.json")) == 1
    (tmp_path / "c.json").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD))
    assert len(rows_of(tmp_path / "c.json")) == 2
    (tmp_path / "e.json").write_text(json.dumps(GOOD) + "\n{oops\n" + json.dumps(GOOD))
    assert len(rows_of(tmp_path / "e.json", on_bad_row="skip")) == 2
    (tmp_path / "d.json").write_text("[]")
    assert rows_of(tmp_path / "d.json") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[\n{"text": "a"}\n{"text": "b"}]', ":3: not JSON: a comma is missing"),
        ('[\n{"text": "a"},\n{"text": "b"}', ":3: not JSON: the array does not end"),
        ('[\n{"text": "a"},\n{"text" "b"}]', ":3: not JSON: Expecting ':' delimiter"),
        ('[{"text": "a"}] x', ":1: not JSON: text follows the end"),
        ('[\n{"text": "a"},\n{"text": "b", "text": "c"}]', ":3: an object has the key text twice"),
    ],
)
def test_a_mistake_in_a_json_array_is_named_by_its_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(OperatorError) as raised:
        rows_of(tmp_path / "a.json")
    assert says in raised.value.message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", gzip.compress(b'{"text": "a"}', mtime=0), "packed with gzip"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b'{"text": "a"}', mtime=0), mtime=0), "packed with gzip"),
        ("a.json", b"PK\x03\x04", "a zip archive"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    ],
)
def test_a_file_that_is_no_data_under_any_name_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OperatorError, match=says):
        rows_of(tmp_path / name)


def test_a_column_without_a_name_as_pandas_writes_its_index_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",text\n0,one\n1,two\n")
    assert [row.text for row in rows_of(tmp_path / "a.csv") if isinstance(row, TextRow)] == ["one", "two"]


def test_the_columns_in_a_hint_leave_out_no_context(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "i", "context": "c", "response": "r"}')
    with pytest.raises(OperatorError) as raised:
        rows_of(tmp_path / "a.jsonl")
    assert '{instruction = "instruction", input = "context", output = "response"}' in raised.value.hint


def test_an_array_that_is_larger_than_a_chunk_is_read_whole(tmp_path: Path) -> None:
    rows = [{"text": f"{number} " + 'ä\n"' * 40_000} for number in range(30)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    assert [row.text for row in rows_of(tmp_path / "a.json") if isinstance(row, TextRow)] == [r["text"] for r in rows]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,b\n1,2,3\n", "3 cells; the header has 2"),
        (b"a,a\n1,2\n", "'a' is there twice"),
        (b"", "has no header"),
        (b'text\n"unclosed\n', "not CSV"),
    ],
)
def test_a_mistake_in_a_csv_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(OperatorError, match=r"a\.csv:") as raised:
        rows_of(tmp_path / "a.csv")
    assert says in raised.value.message


@pytest.mark.parametrize(
    ("encoding", "mark", "noted"),
    [
        ("utf-8", b"\xef\xbb\xbf", "UTF-8 with a byte-order mark"),
        ("utf-16-le", b"\xff\xfe", "UTF-16-LE with a byte-order mark"),
        ("utf-16-be", b"\xfe\xff", "UTF-16-BE with a byte-order mark"),
        ("utf-16-le", b"", "UTF-16-LE"),
        ("utf-32-le", b"\xff\xfe\x00\x00", "UTF-32-LE with a byte-order mark"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_marks_of_encodings_are_read_and_said(
    tmp_path: Path, encoding: str, mark: bytes, noted: str, kind: str
) -> None:
    file = write_as(tmp_path, kind, ROWS[:3])
    file.write_bytes(mark + file.read_bytes().decode().replace("\n", "\r\n").encode(encoding))
    counts = ReadCounts()
    found = [located.row for located in read_rows(DataSource(file), "", counts)]
    assert [turns(row)[0] for row in found] == [("user", row["prompt"]) for row in ROWS[:3]]
    assert counts.encodings[str(file)] == f"{noted}, CRLF line ends"


def test_another_encoding_is_refused_by_line_until_the_recipe_names_it(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n" + json.dumps(GOOD, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(OperatorError, match=r"a\.jsonl:2: not UTF-8: byte 0xf6") as raised:
        rows_of(file)
    assert 'encoding = "latin-1"' in raised.value.hint
    assert turns(rows_of(file, encoding="latin-1")[1])[1] == ("assistant", "größer")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl.gz"])
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    file = write_as(tmp_path, kind, ROWS)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OperatorError, match="rows"):
        rows_of(file)


def test_a_file_that_changes_while_it_is_read_ends_the_reading(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", *[GOOD] * 3)
    reading = read_rows(DataSource(file), "", ReadCounts())
    next(reading)
    with file.open("a") as more:
        more.write(json.dumps(GOOD) + "\n")
    with pytest.raises(OperatorError, match="changed while it was read"):
        list(reading)


# ---- places and splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("dev.json", "val"),
        ("test/data-00000-of-00001.arrow", "test"),
        ("my_train_v2.json", "train"),
        ("Valid.jsonl", "val"),
        ("attest.json", ""),
        ("trained.json", ""),
        ("train_test.json", ""),
        ("0001.json", ""),
    ],
)
def test_a_name_says_its_split(name: str, split: str) -> None:
    assert split_of(name) == split


def names(place: Path) -> dict[str, list[str]]:
    return {
        split: [file.relative_to(place).as_posix() for file in files]
        for split, files in splits_in(DataSource(place)).items()
    }


def test_a_folder_of_splits_and_a_folder_of_rows(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl", "old/train.jsonl", "metadata.json", ".hidden.json"):
        put(tmp_path / "split" / name, GOOD)
    assert names(tmp_path / "split") == {"train": ["train.jsonl"], "val": ["valid.jsonl"]}
    assert [file.name for file in data_files(tmp_path / "split").left_out] == ["train.jsonl"]
    counts = ReadCounts()
    assert len(list(read_rows(DataSource(tmp_path / "split"), "train", counts))) == 1
    assert "old/train.jsonl" in counts.notes()[0]
    for number in range(12):
        put(tmp_path / "rows" / f"{number:04d}.json", GOOD)
    assert names(tmp_path / "rows") == {"": [f"{number:04d}.json" for number in range(12)]}
    counts = ReadCounts()
    assert len(list(read_rows(DataSource(tmp_path / "rows"), "train", counts))) == 12
    assert counts.files == 12
    with pytest.raises(OperatorError, match="has no test split, only data without splits"):
        rows_of(tmp_path / "rows", "test")


def test_what_is_saved_by_datasets_and_what_lies_on_the_hub_has_its_splits(tmp_path: Path) -> None:
    for name in ("train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow", "dataset_dict.json"):
        put(tmp_path / "saved" / name)
    assert list(names(tmp_path / "saved")) == ["train", "test"]
    for name in ("README.md", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"):
        put(tmp_path / "hub" / name)
    assert [len(files) for files in names(tmp_path / "hub").values()] == [2]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["main/train.json", "socratic/train.json"], "several parts with splits of their own: main, socratic"),
        (["train.json", "train.parquet"], "the train split is there as"),
        (["test.json", "data.json"], "test.json is named for a split, but data.json is not"),
        (["notes.md"], "has no data files"),
    ],
)
def test_a_folder_whose_files_are_not_clear_is_refused(tmp_path: Path, files: list[str], says: str) -> None:
    for name in files:
        put(tmp_path / name, GOOD)
    with pytest.raises(OperatorError) as raised:
        splits_in(DataSource(tmp_path))
    assert says in raised.value.message
    assert raised.value.hint


def test_a_dataset_of_the_hub_is_read_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    home, commit = tmp_path / "datasets--org--name", "a" * 40
    blob = put(home / "blobs" / "0001", GOOD)
    folder = home / "snapshots" / commit / "data"
    folder.mkdir(parents=True)
    (folder / "train-00000-of-00001.jsonl").symlink_to(blob)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    stage = FinetuneStage(name="x", model="./m", data="org/name")
    assert len(list(read_rows(source_of_stage(stage, None, "org/name"), "train", ReadCounts()))) == 1
    with pytest.raises(OperatorError, match="no dataset org/other in the local hub cache"):
        source_of_stage(stage, None, "org/other")


def test_reading_is_a_stream(tmp_path: Path) -> None:
    """A bad row far behind is met only when it is reached."""
    file = put(tmp_path / "a.jsonl", *[GOOD] * 5000)
    with file.open("a") as more:
        more.write("{oops\n")
    reading = read_rows(DataSource(file), "", ReadCounts())
    assert isinstance(next(reading), Located)
    with pytest.raises(OperatorError, match=r":5001: not JSON"):
        list(reading)
