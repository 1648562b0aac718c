"""Answers come only from the syntax tree, and no question is in two splits."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.data.code.extract import ParseCounts, definitions_of
from engines.data.code.python_source import module_name
from engines.data.code.questions import facts_of
from engines.data.door import DataSource, read_conversations
from engines.data.messages import CodeOptions, prepare_messages, shared_out
from engines.data.readers.row import MessageRow
from engines.data.split import SPLITS
from engines.data.stage import run
from engines.data.text import prepare_text
from engines.events.attempts import Progress
from recipes.problems import OperatorError
from tests.engines.small_corpora import fresh, stdlib_text, write_tree
from tests.stage_context import make_context

KINDS = ("docstring", "signature", "bases")
MODULE = '''
class Base: ...
class Shape(Base, abc.ABC, metaclass=abc.ABCMeta):
    """A closed figure.
    With an area.

    More text.
    """
    def area(self, scale: float = 1.0, *, unit="m") -> float:
        """The area."""
        def inner(): "not asked for"
    async def draw(self): pass
try:
    import fast
except ImportError:
    def slow(): "Works everywhere."
@property
def twice(): "one"
@twice.setter
def twice(): "two"
'''


def facts(text: str, path: str = "pkg/mod.py", limit: int = 400) -> tuple[dict[tuple[str, str], str], Counter[str]]:
    """Answers by kind and name, and the counts of dropped facts."""
    dropped: Counter[str] = Counter()
    found = facts_of(definitions_of(path, text, "python", dropped, ParseCounts()), KINDS, limit, dropped)
    return {(fact.kind, fact.question.split("`")[1]): fact.answer for fact in found}, dropped


def test_a_module_gives_exactly_these_facts() -> None:
    found, dropped = facts(MODULE)
    assert found == {
        ("docstring", "pkg.mod.Shape"): "A closed figure. With an area.",
        ("bases", "pkg.mod.Shape"): "`Shape` inherits from `Base` and `abc.ABC`.",
        ("docstring", "pkg.mod.Shape.area"): "The area.",
        ("signature", "pkg.mod.Shape.area"): "`def area(self, scale: float=1.0, *, unit='m') -> float`",
        ("signature", "pkg.mod.Shape.draw"): "`async def draw(self)`",
        ("docstring", "pkg.mod.slow"): "Works everywhere.",
        ("signature", "pkg.mod.slow"): "`def slow()`",
        ("signature", "pkg.mod.twice"): "`def twice()`",
    }
    assert dropped == {"defined_twice": 2, "duplicate_question": 1}


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("json/decoder.py", "json.decoder"),
        ("src/pkg/__init__.py", "pkg"),
        ("src.py", "src"),
        ("__init__.py", "__init__"),
        ("my-script.py", ""),
        ("a b/c.py", ""),
    ],
)
def test_the_module_name_follows_from_the_path(path: str, module: str) -> None:
    assert module_name(path) == module


@pytest.mark.parametrize(
    "text",
    [
        "def f(:",
        "x = '\0'",
        "(" * 5000,
        "x = " + "-" * 100_000 + "1",
        "def f(a=" + "(" * 150 + "1" + ",)" * 150 + "): ''",
    ],
    ids=["syntax", "nul", "brackets", "unary", "nested default"],
)
def test_files_that_cannot_be_parsed_are_counted_and_affect_no_others(text: str) -> None:
    found, dropped = facts(text, "a.py", 4000)
    assert len(found) + dropped["not_parsed"] >= 1
    assert facts("def f(): 'ok'", "b.py")[0]


def test_warnings_about_the_parsed_code_are_silenced() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, dropped = facts("def f():\n    'Does.'\n    return '\\d' is 1\n")
    assert found["docstring", "pkg.mod.f"] == "Does."
    assert not dropped


@pytest.mark.parametrize(
    ("docstring", "reason"),
    [
        ("'x' * 1", None),
        ("'   '", None),
        ("'...'", None),
        ("'say <|im_end|>'", "control_strings"),
        ("'say </s>'", "control_strings"),
        ("'a \\x1b[2J b'", "control_characters"),
        ("'a \\ud800 b'", "control_characters"),
        ("'a \\u202e b'", "control_characters"),
        (f"'{'long ' * 30}'", "answer_too_long"),
    ],
)
def test_a_docstring_that_is_not_an_answer_is_left_out(docstring: str, reason: str | None) -> None:
    found, dropped = facts(f"def f():\n    {docstring}\n", limit=100)
    assert set(found) == {("signature", "pkg.mod.f")}
    assert dropped == ({reason: 1} if reason else {})


def prepared(
    data: Path, tmp_path: Path, name: str = "m", **fields: Any
) -> tuple[dict[str, list[MessageRow]], dict[str, Any]]:
    out = fresh(tmp_path / name)
    split = {key: fields.pop(key) for key in ("val_fraction", "test_fraction", "seed") if key in fields}
    options = CodeOptions(**({"questions": KINDS} | fields))
    metadata = prepare_messages(data, out, fresh(tmp_path / f"{name}-work"), options, **split)
    return {split: list(read_conversations(DataSource(out), split)) for split in SPLITS}, metadata


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stdlib_text(tmp_path_factory.mktemp("text"), "json", "email")


def test_real_answers_are_those_of_the_sources(tmp_path: Path, text: Path) -> None:
    rows, metadata = prepared(text, tmp_path)
    asked = {row.prompt: row.answer for split in SPLITS for row in rows[split]}
    named = {(kind, prompt.split("`")[1]): answer for kind, prompt, answer in every(rows)}
    assert named["docstring", "json.decoder.JSONDecoder.decode"].startswith("Return the Python representation of ``s``")
    assert named["bases", "json.decoder.JSONDecodeError"] == "`JSONDecodeError` inherits from `ValueError`."
    assert named["signature", "json.decoder.JSONDecodeError.__init__"] == "`def __init__(self, msg, doc, pos)`"
    assert len(asked) == sum(len(part) for part in rows.values())
    assert {split: len(part) for split, part in rows.items()} == metadata["found"]


def every(rows: dict[str, list[MessageRow]]) -> list[tuple[str, str, str]]:
    return [(row.category, row.prompt, row.answer) for part in rows.values() for row in part]


def test_the_split_of_the_text_stage_is_kept_by_file(tmp_path: Path, text: Path) -> None:
    rows, _ = prepared(text, tmp_path, seed=999, val_fraction=0.4)
    for split in SPLITS:
        paths = {json.loads(line)["path"] for line in (text / f"{split}.jsonl").read_text().splitlines()}
        assert {row.group for row in rows[split]} <= paths


def test_a_folder_of_sources_is_split_by_file_here(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {f"m{n}.py": f"def f{n}(a, b):\n    'Does {n}.'\n" for n in range(40)})
    rows, metadata = prepared(source, tmp_path, val_fraction=0.2, test_fraction=0.2)
    groups = [{row.group for row in rows[split]} for split in SPLITS]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    assert metadata["split"] == "by file, here"


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("fgh"), st.booleans()), min_size=3, max_size=30))
def test_no_question_is_ever_in_two_splits(files: list[tuple[str, str, bool]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tmp_path = Path(folder)
        tree = {}
        for number, (module, function, packaged) in enumerate(files):
            path = f"src/{module}{number % 3}/__init__.py" if packaged else f"{module}{number % 3}.py"
            tree[path] = f"def {function}():\n    'It is {number}.'\ndef only{number}(): 'Alone.'\n"
        source = write_tree(
            tmp_path / "src0", tree | {"x.py": "def x(): 'X.'", "y.py": "def y(): 'Y.'", "z.py": "z = 1"}
        )
        try:
            rows, _ = prepared(source, tmp_path, val_fraction=0.3, test_fraction=0.3)
        except OperatorError:
            return  # no questions in the train split
        questions = [{row.prompt for row in rows[split]} for split in SPLITS]
        assert sum(map(len, questions)) == len(set.union(*questions))


def test_a_question_that_two_splits_would_ask_is_dropped_from_the_later_one_and_counted(tmp_path: Path) -> None:
    for split, text in (("train", "def f(): 'One.'"), ("val", "def f(): 'Two.'"), ("test", "def g(): 'Three.'")):
        write_tree(
            tmp_path / "text",
            {f"{split}.jsonl": json.dumps({"path": f"{'src/' * (split == 'val')}m.py", "text": text}) + "\n"},
        )
    write_tree(tmp_path / "text", {"metadata.json": '{"kind": "text"}'})
    rows, metadata = prepared(tmp_path / "text", tmp_path)
    assert [row.prompt.split("`")[1] for split in SPLITS for row in rows[split]] == ["m.f", "m.g", "m.g"]
    assert metadata["dropped"] == {"question_in_another_split": 1, "defined_twice": 2}


def test_max_examples_is_shared_out_and_repeatable(tmp_path: Path, text: Path) -> None:
    rows, metadata = prepared(text, tmp_path, "a", max_examples=50)
    again, _ = prepared(text, tmp_path, "b", max_examples=50)
    whole, _ = prepared(text, tmp_path, "c")
    other, _ = prepared(text, tmp_path, "d", max_examples=50, seed=1)
    assert rows == again != other
    assert sum(len(part) for part in rows.values()) == 50
    assert all(rows.values())
    for split in SPLITS:
        assert [row for row in whole[split] if row in rows[split]] == rows[split]
        assert metadata["splits"][split]["examples"] == len(rows[split])


@given(st.integers(1, 500), st.tuples(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300)))
def test_shares_add_up_and_never_exceed_what_exists(limit: int, counts: tuple[int, int, int]) -> None:
    found = dict(zip(SPLITS, counts, strict=True))
    quota = shared_out(limit, found)
    assert sum(quota.values()) == min(limit, sum(counts))
    assert all(quota[split] <= found[split] for split in SPLITS)
    if limit >= 3:
        assert all(quota[split] for split in SPLITS if found[split])


def test_sources_without_questions_are_reported(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {"a.py": "a = 1\n", "b.py": "b = 1\n", "c.py": "c = 1\n"})
    with pytest.raises(OperatorError, match="gives no questions"):
        prepared(source, tmp_path)
    with pytest.raises(OperatorError, match="no usable sources"):
        prepared(fresh(tmp_path / "empty"), tmp_path, "e")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"messages": []}', "last turn"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "the row has no user turn"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "last turn"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "'robot'"),
        ('{"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "a"}]}', "no content"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 3}]}', "got a number 3"),
        ('{"messages": [{"role":"user","content":"\\ud800"},{"role":"assistant","content":"a"}]}', "surrogate"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    (tmp_path / "val.jsonl").write_text(f"\ufeff{good}\n\n{line}\n")
    rows = read_conversations(DataSource(tmp_path), "val")
    assert next(rows).answer == "b"
    with pytest.raises(OperatorError, match=r"val\.jsonl:3: ") as raised:
        next(rows)
    assert message in raised.value.message
    with pytest.raises(OperatorError, match="has no test split"):
        next(read_conversations(DataSource(tmp_path), "test"))


STAGE = {"name": "questions", "kind": "prepare", "output": "messages", "data": "text"}


@pytest.mark.parametrize(
    "fields",
    [
        {"questions": ["bases"]},
        {"max_examples": 12},
        {"max_answer_chars": 30},
        {"val_fraction": 0.4},
        {"test_fraction": 0.4},
        {"seed": 5},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_field_of_the_recipe_reaches_the_examples(tmp_path: Path, fields: dict[str, Any]) -> None:
    source = write_tree(
        tmp_path / "src",
        {
            f"m{n}.py": f"class C{n}(Base):\n    'Is {n} and {'long ' * n}.'\n    def f(self): 'Does.'\n"
            for n in range(24)
        },
    )
    made = []
    for name, given_fields in (("default", {}), ("changed", fields)):
        context = make_context(tmp_path / name, STAGE | given_fields, inputs={"data": source})
        result = run(context)
        assert result.metrics["examples"] > 0
        progress = [e for e in context.events() if isinstance(e, Progress)][-1]
        assert progress.done == progress.total
        made.append([(context.out / f"{split}.jsonl").read_bytes() for split in SPLITS])
    assert made[0] != made[1]


def test_a_text_stage_that_is_an_input_reaches_the_examples(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        source = write_tree(tmp_path / name / "src", {f"{name}{n}.py": f"def f{n}(): 'Does.'" for n in range(6)})
        prepare_text(str(source), fresh(tmp_path / name / "text"))
        context = make_context(tmp_path / name, STAGE, inputs={"data": tmp_path / name / "text"})
        run(context)
        made.append((context.out / "train.jsonl").read_text())
    assert "`one" in made[0]
    assert "`two" in made[1]
