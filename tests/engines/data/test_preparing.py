"""Rows of any format become splits of exact sizes: nothing is lost, nothing is in two splits, all is counted."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engines.context import StopRequested
from engines.data.door import DataSource, ReadCounts, read_conversations
from engines.data.preparing.command import run_command
from engines.data.preparing.divide import SplitWish
from engines.data.preparing.rows import RowOptions, prepare_rows
from engines.data.preparing.stage import metrics_of, warnings_of
from engines.data.split import SPLITS
from engines.data.stage import run
from engines.events.writers import Warned
from engines.inputs.files_read import files_read, sources_of
from recipes.problems import OperatorError
from recipes.stages.prepare import PrepareMessages
from tests.engines.small_corpora import fresh, write_tree
from tests.patience import PATIENCE_S
from tests.stage_context import TriedContext, make_context

TENTHS = SplitWish(0.1, 0.1)


def talk(asked: str, answer: str = "yes", **keys: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
        ],
        **keys,
    }


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def prepared(place: Path, tmp_path: Path, *, source: dict[str, Any] | None = None, **options: Any) -> Made:
    out = fresh(tmp_path / "prepared")
    options = {"wish": TENTHS, **options}
    metadata = prepare_rows(
        DataSource(place, **(source or {})), ReadCounts(), out, fresh(tmp_path / "scratch"), RowOptions(**options)
    )
    return Made(out, metadata)


class Made:
    """A prepared folder: its rows as they lie there, by split, and its metadata."""

    def __init__(self, out: Path, metadata: dict[str, Any]) -> None:
        self.out = out
        self.metadata = metadata
        self.rows = {
            split: [json.loads(line) for line in (out / f"{split}.jsonl").read_text("utf-8").splitlines()]
            for split in SPLITS
        }

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(self.rows[split]) for split in SPLITS)

    def asked(self, split: str) -> list[str]:
        return [row["messages"][-2]["content"] for row in self.rows[split]]


def interaction(number: int) -> dict[str, Any]:
    return {
        "id": f"int-{number:04d}",
        "task": {"description": f"Implement number {number}", "category": "text" if number % 3 else "io"},
        "agent": {"role": "coder"},
        "execution": {"output": f"def number(): return {number}", "success": True},
    }


def test_298_interactions_of_any_shape_are_divided_into_238_29_and_31(tmp_path: Path) -> None:
    for number in range(298):
        write_tree(tmp_path / "jobs", {f"{number:04d}.json": json.dumps(interaction(number), indent=1)})
    columns = {
        "user": "task.description", "assistant": "execution.output", "category": "task.category", "id": "id",
    }  # fmt: skip
    made = prepared(tmp_path / "jobs", tmp_path, source={"columns": columns})
    assert made.sizes == (238, 29, 31)
    assert len({row["id"] for split in SPLITS for row in made.rows[split]}) == 298
    categories = [made.metadata["splits"][split]["categories"] for split in SPLITS]
    assert Counter(row["category"] for row in made.rows["train"]) == {
        name: found["examples"] for name, found in categories[0].items()
    }
    assert sum(found["examples"] for part in categories for found in part.values()) == 298
    assert made.metadata["split"]["wanted"] == {"train": 238, "val": 29, "test": 31}
    assert made.metadata["split"]["deviation"] == {}


def test_the_metadata_has_the_hash_and_the_counts_of_each_file(tmp_path: Path) -> None:
    rows = [talk(f"{'why ' * number}?", "so", category="long" if number > 20 else "") for number in range(40)]
    made = prepared(write_lines(tmp_path / "d.jsonl", rows), tmp_path)
    for split in SPLITS:
        data = (made.out / f"{split}.jsonl").read_bytes()
        found = made.metadata["splits"][split]
        assert found["sha256"] == hashlib.sha256(data).hexdigest()
        assert found["bytes"] == len(data)
        assert found["examples"] == len(made.rows[split])
    long = made.metadata["splits"]["train"]["categories"]["long"]
    lengths = [
        len(row["messages"][0]["content"]) + len(row["messages"][1]["content"])
        for row in made.rows["train"]
        if row.get("category") == "long"
    ]
    assert long["turns"] == 3 * len(lengths)
    assert long["prompt_characters_mean"] == pytest.approx(sum(lengths) / len(lengths), abs=0.05)
    assert long["prompt_characters_max"] == max(lengths)
    assert json.loads((made.out / "metadata.json").read_text()) == made.metadata


def test_the_same_data_and_fields_give_the_same_bytes(tmp_path: Path) -> None:
    write_tree(tmp_path, {"make.py": MAKES})
    made = []
    for name in ("one", "two"):
        context = by_command(tmp_path, "python", "make.py", inside=name)
        run(context)
        made.append({file.name: file.read_bytes() for file in sorted(context.out.iterdir())})
    assert made[0] == made[1]
    assert sorted(made[0]) == ["metadata.json", "statistics.md", "test.jsonl", "train.jsonl", "val.jsonl"]


def test_the_metadata_says_the_formats_and_where_rows_were_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "d" / "a.jsonl", [talk("q")] * 3 + [{"messages": []}])
    write_lines(tmp_path / "d" / "b.jsonl", [{"instruction": f"i{n}", "output": "o"} for n in range(9)])
    metadata = prepared(tmp_path / "d", tmp_path, source={"on_bad_row": "skip"}).metadata
    assert metadata["formats"] == {"messages in JSON Lines": "a.jsonl", "alpaca in JSON Lines": "b.jsonl"}
    assert (metadata["files"], metadata["rows"], sum(metadata["skipped"].values())) == (2, 12, 1)
    assert metadata["skipped_examples"][0].startswith("d/a.jsonl:4: ")
    assert metrics_of(metadata)["dropped"] == metrics_of(metadata)["skipped_rows"] == 1


def test_the_table_of_categories_has_every_row_once(tmp_path: Path) -> None:
    rows = [talk(f"q{n}", category=["plain", "a|b\x1b[2J", ""][n % 3]) for n in range(60)]
    made = prepared(write_lines(tmp_path / "d.jsonl", rows), tmp_path)
    lines = (made.out / "statistics.md").read_text("utf-8").splitlines()
    table = {line.split(" | ")[0]: line.split(" | ")[1:5] for line in lines[lines.index("") :] if "% |" in line}
    assert list(table) == ["| (none)", "| a\\|b\\x1b[2J", "| plain"]
    assert [sum(int(cells[part]) for cells in table.values()) for part in range(3)] == list(made.sizes)
    assert {cells[3] for cells in table.values()} == {"33.3%"}


def test_the_same_data_in_another_order_gives_the_same_splits(tmp_path: Path) -> None:
    rows = [talk(f"q{number}") for number in range(100)]
    one = prepared(write_lines(tmp_path / "a.jsonl", rows), tmp_path / "a")
    other = prepared(write_lines(tmp_path / "b.jsonl", rows[::-1]), tmp_path / "b")
    for split in SPLITS:
        assert sorted(one.asked(split)) == sorted(other.asked(split))
        assert one.asked(split) == [asked for asked in (f"q{n}" for n in range(100)) if asked in one.asked(split)]
    seeded = prepared(tmp_path / "a.jsonl", tmp_path / "c", seed=1)
    assert set(seeded.asked("test")) != set(one.asked("test"))


def test_no_group_and_no_question_is_in_two_splits(tmp_path: Path) -> None:
    rows = [talk(f"q{n % 90}", f"answer {n}", group=f"file{n % 40}" if n % 2 else "") for n in range(300)]
    made = prepared(write_lines(tmp_path / "d.jsonl", rows), tmp_path)
    for key in (lambda row: row.get("group") or id(row), lambda row: row["messages"][1]["content"]):
        found = [{key(row) for row in made.rows[split]} for split in SPLITS]
        assert sum(map(len, found)) == len(set.union(*found))
    assert sum(made.sizes) == 300
    wanted, deviation = made.metadata["split"]["wanted"], made.metadata["split"]["deviation"]
    assert {split: wanted[split] + deviation.get(split, 0) for split in SPLITS} == dict(
        zip(SPLITS, made.sizes, strict=True)
    )
    assert all(f"the {split} split has" in " ".join(warnings_of(made.metadata)) for split in deviation)


def test_rows_stay_alone_when_nothing_groups_them(tmp_path: Path) -> None:
    rows = [talk("the same question", f"answer {n}", group="one") for n in range(50)]
    file = write_lines(tmp_path / "d.jsonl", rows)
    assert prepared(file, tmp_path / "a", group_by=[]).sizes == (40, 5, 5)
    with pytest.raises(OperatorError, match="cannot divide 1 group"):
        prepared(file, tmp_path / "b")
    by_category = [talk(f"q{n}", category="abc"[n % 3]) for n in range(60)]
    made = prepared(write_lines(tmp_path / "c.jsonl", by_category), tmp_path / "c", group_by=["category"])
    assert [len({row["category"] for row in made.rows[split]}) for split in SPLITS] == [1, 1, 1]


def test_exact_repeats_are_counted_kept_together_or_dropped(tmp_path: Path) -> None:
    rows = [talk(f"q{n % 70}", category="c") for n in range(100)]
    file = write_lines(tmp_path / "d.jsonl", rows)
    kept = prepared(file, tmp_path / "kept", group_by=[])
    assert kept.metadata["duplicates"]["exact"] == {"rows": 30, "across_given_splits": 0, "policy": "keep"}
    assert sum(kept.sizes) == 100
    asked = [set(kept.asked(split)) for split in SPLITS]
    assert sum(map(len, asked)) == len(set.union(*asked)) == 70
    dropped = prepared(file, tmp_path / "dropped", duplicates="drop")
    assert dropped.sizes == (56, 7, 7)
    assert metrics_of(dropped.metadata)["dropped"] == metrics_of(dropped.metadata)["duplicates"] == 30
    assert any("30 row(s) repeat another exactly; they were left out" in one for one in warnings_of(dropped.metadata))


def test_rows_that_differ_in_an_answer_or_a_tool_are_no_repeats(tmp_path: Path) -> None:
    rows = [
        talk("q", "one"),
        talk("q", "two"),
        talk("q", "one", tools=[{"type": "function", "function": {"name": "f"}}]),
    ]
    rows += [talk(f"q{n}") for n in range(20)]
    made = prepared(write_lines(tmp_path / "d.jsonl", rows), tmp_path)
    assert made.metadata["duplicates"]["exact"]["rows"] == 0
    assert any(row.get("tools") for split in SPLITS for row in made.rows[split])


def given_splits(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    for name, rows in splits.items():
        write_lines(folder / f"{name}.jsonl", rows)
    return folder


def test_given_splits_are_kept_and_what_they_share_is_said(tmp_path: Path) -> None:
    folder = given_splits(
        tmp_path / "d",
        train=[talk(f"q{n}") for n in range(20)],
        val=[talk(f"q{n}", "another answer") for n in range(3)],
        test=[talk(f"q{n}") for n in range(15, 25)],
    )
    made = prepared(folder, tmp_path / "a")
    assert made.sizes == (20, 3, 10)
    assert made.metadata["duplicates"]["exact"] == {"rows": 5, "across_given_splits": 5, "policy": "keep"}
    assert made.metadata["split"]["train_rows_of_held_out_groups"] == 8
    assert any(one.startswith("8 row(s) of train have a group or a prompt") for one in warnings_of(made.metadata))
    dropped = prepared(folder, tmp_path / "b", duplicates="drop")
    assert dropped.sizes == (15, 3, 10)  # the held-out copy stays


def test_a_train_file_alone_is_divided_and_a_missing_split_is_taken_from_train_on_request(tmp_path: Path) -> None:
    rows = [talk(f"q{n}") for n in range(50)]
    assert prepared(given_splits(tmp_path / "d", train=rows), tmp_path / "a").sizes == (40, 5, 5)
    both = given_splits(tmp_path / "e", train=rows, test=[talk("t")])
    assert prepared(both, tmp_path / "b").sizes == (50, 0, 1)
    wish = SplitWish(0.1, 0.1, val_rows=7)
    assert prepared(both, tmp_path / "c", wish=wish).sizes == (43, 7, 1)
    with pytest.raises(OperatorError, match="the data gives a test split of its own"):
        prepared(both, tmp_path / "f", wish=SplitWish(test_rows=3))


def test_counts_of_rows_are_exact(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "d.jsonl", [talk(f"q{n}") for n in range(50)])
    assert prepared(file, tmp_path, wish=SplitWish(0.1, 0.1, val_rows=12, test_rows=3)).sizes == (35, 12, 3)


def test_at_most_max_examples_are_written(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "d.jsonl", [talk(f"q{n}") for n in range(100)])
    made = prepared(file, tmp_path, max_examples=20)
    assert made.sizes == (16, 2, 2)
    assert made.metadata["found"] == {"train": 80, "val": 10, "test": 10}


def test_texts_and_preferences_keep_their_form_and_kinds_are_not_mixed(tmp_path: Path) -> None:
    texts = prepared(write_lines(tmp_path / "t.jsonl", [{"text": f"Text {n}."} for n in range(20)]), tmp_path / "t")
    assert texts.sizes == (16, 2, 2)
    assert set(texts.rows["val"][0]) == {"text"}
    pair = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    pairs = [pair | {"prompt": f"p{n}"} for n in range(20)]
    made = prepared(write_lines(tmp_path / "p.jsonl", pairs), tmp_path / "p")
    assert made.metadata["row_kind"] == "preference"
    assert set(made.rows["test"][0]) == {"prompt", "chosen", "rejected"}
    mixed = tmp_path / "mixed"
    write_lines(mixed / "a.jsonl", [{"text": "Text."}])
    write_lines(mixed / "b.jsonl", [talk("q")])
    with pytest.raises(
        OperatorError, match=r"b\.jsonl:1: the row is of the kind messages; .*a\.jsonl:1 is of the kind"
    ):
        prepared(mixed, tmp_path / "m")


def test_what_is_prepared_is_read_again_as_it_was(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    row = talk("q", "a", group="g", category="c", id="i")
    row["messages"][2:2] = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1", "name": "f"},
    ]
    made = prepared(write_lines(tmp_path / "d.jsonl", [row]), tmp_path, wish=SplitWish())
    (again,) = read_conversations(DataSource(made.out), "train")
    assert again.as_dicts() == row["messages"]
    assert (again.group, again.category, again.id) == ("g", "c", "i")


# ---- commands

STAGE = {"name": "rows", "kind": "prepare", "output": "messages"}
MAKES = "import json\nfor n in range(30):\n print(json.dumps({'prompt': f'q{n}', 'completion': 'yes'}))\n"


def by_command(tmp_path: Path, *command: str, inside: str = "run", **fields: Any) -> TriedContext:
    stage = STAGE | {"command": list(command), "command_folder": str(tmp_path), **fields}
    return make_context(tmp_path / inside, stage)


def test_a_commands_output_is_the_data_and_its_files_are_recorded(tmp_path: Path) -> None:
    write_tree(tmp_path, {"make.py": MAKES})
    context = by_command(tmp_path, "python", "make.py", val_fraction=0.1, test_fraction=0.1)
    assert run(context).metrics["train_rows"] == 24
    record = json.loads((context.out / "metadata.json").read_text())["command"]
    assert record["argv"] == ["python", "make.py"]
    assert record["program"] == sys.executable
    assert record["files"] == {"make.py": hashlib.sha256(MAKES.encode()).hexdigest()}
    (output,) = record["output"]
    assert output["bytes"] > 30
    assert len(output["sha256"]) == 64


def test_a_command_may_write_files_into_a_folder(tmp_path: Path) -> None:
    make = "import sys, pathlib\nfor s, n in (('train', 9), ('test', 4)):\n"
    make += " pathlib.Path(sys.argv[1], s + '.csv').write_text('prompt,completion\\n' + 'q,a\\n' * n)\n"
    write_tree(tmp_path, {"make.py": make})
    context = by_command(tmp_path, "python", "make.py", "{out}")
    result = run(context)
    assert (result.metrics["train_rows"], result.metrics["test_rows"]) == (9, 4)
    record = json.loads((context.out / "metadata.json").read_text())["command"]
    assert [file["path"] for file in record["output"]] == ["test.csv", "train.csv"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["python", "-c", "import sys; sys.exit('no rows today')"], r"exited with status 1; its last lines: no rows"),
        (["python", "-c", "import os; os.kill(os.getpid(), 9)"], "was ended by SIGKILL"),
        (["python", "-c", "pass"], "printed nothing"),
        (["python", "-c", "pass", "{out}"], "wrote no files"),
        (["no-such-program-here"], "is not a program"),
        (["./make.txt"], "is not a program"),
    ],
)
def test_a_command_that_gives_no_data_is_named(tmp_path: Path, command: list[str], message: str) -> None:
    write_tree(tmp_path, {"make.txt": "text"})
    with pytest.raises(OperatorError, match=message):
        run(by_command(tmp_path, *command))


def test_a_stop_ends_the_command(tmp_path: Path) -> None:
    waits = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid()) + ' '); time.sleep(600)"
    noted = tmp_path / "pid"

    def waiting(_done: int) -> None:
        if noted.exists() and noted.read_text().endswith(" "):
            raise StopRequested

    with pytest.raises(StopRequested):
        run_command(["python", "-c", waits], tmp_path, fresh(tmp_path / "scratch"), waiting)
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)


STAYS = """
import os
print('{"prompt": "a", "completion": "b"}', flush=True)
child = os.fork()
if not child:
    import time
    time.sleep(600)
open('pid', 'w').write(str(child))
"""


def test_nothing_that_a_command_started_writes_while_its_rows_are_read(tmp_path: Path) -> None:
    run_command(["python", "-c", STAYS], tmp_path, fresh(tmp_path / "scratch"), lambda _done: None)
    child = int((tmp_path / "pid").read_text())
    try:
        handle = os.pidfd_open(child)
    except ProcessLookupError:
        return
    with os.fdopen(handle):
        assert select.select([handle], [], [], PATIENCE_S)[0], "the child is still there"


def test_a_command_that_fills_the_disk_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: full)
    with pytest.raises(OperatorError, match=r"1000 B free; what the command still writes"):
        run_command(
            ["python", "-c", "import time; time.sleep(600)"],
            tmp_path,
            fresh(tmp_path / "scratch"),
            lambda _done: None,
        )


def test_the_files_of_a_command_are_its_inputs(tmp_path: Path) -> None:
    write_tree(tmp_path, {"make.py": MAKES, "other.py": ""})
    stage = PrepareMessages.model_validate(
        STAGE | {"command": ["python", "make.py", "7", "{out}"], "command_folder": str(tmp_path)}
    )
    assert sources_of(stage) == {"source": tmp_path}
    assert files_read(stage, "source", tmp_path) == [("make.py", tmp_path / "make.py")]


def test_warnings_reach_the_journal(tmp_path: Path) -> None:
    write_lines(tmp_path / "d.jsonl", [talk("q")] * 10)
    context = make_context(
        tmp_path / "x",
        STAGE | {"val_fraction": 0.0, "test_fraction": 0.0, "data": "./d.jsonl"},
        inputs={"data": tmp_path / "d.jsonl"},
    )
    run(context)
    texts = [event.message for event in context.events() if isinstance(event, Warned)]
    assert any("9 row(s) repeat another exactly" in text for text in texts)
