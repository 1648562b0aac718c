"""Rows of results are found by an index, whatever their texts have; filters compare with a baseline by prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cockpit.talking.answers_target import AnswersTarget
from cockpit.talking.browsing import Browsing, differences
from cockpit.talking.results_index import ResultsIndex
from recipes.problems import OperatorError


def write_results(file: Path, passed: dict[str, bool], **fields: Any) -> Path:
    rows = [
        {
            "key": key, "name": key, "where": f"t:{at}", "prompt": f"prompt {key}", "expected": "",
            "answer": f'{{\n  }},\n {{"{key}"}}\n ]', "passed": ok,
            "verdicts": [{"check": "exact", "passed": ok, "reason": "}"}], "ended": True, "tokens": 3,
            "latency_s": 0.5, "extra": {"a": [1, {"b": 2}]}, **fields,
        }
        for at, (key, ok) in enumerate(passed.items())
    ]  # fmt: skip
    value = {"format": 1, "model": "/m", "metrics": {"success": 0.5}, "comparison": None, "rows": rows}
    file.write_text(json.dumps(value, indent=1) + "\n")
    return file


def test_each_row_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = write_results(tmp_path / "r.json", {"a": True, "b": False, "c": True})
    index = ResultsIndex(file)
    written = json.loads(file.read_text())["rows"]
    assert len(index) == 3
    assert index.metrics == {"success": 0.5}
    for at, row in enumerate(written):
        found = index.row(at)
        assert (found.key, found.answer, found.passed) == (row["key"], row["answer"], row["passed"])
        assert found.verdicts[0].reason == "}"
    assert len(ResultsIndex(write_results(tmp_path / "none.json", {}, x=1))) == 0


def test_filters_compare_with_a_baseline_by_prompt(tmp_path: Path) -> None:
    model = write_results(tmp_path / "m.json", {"a": True, "b": False, "c": True, "d": False, "new": True})
    base = write_results(tmp_path / "b.json", {"old": True, "d": True, "c": False, "b": False, "a": True})
    browsing = Browsing(AnswersTarget(model, base))
    keys = {name: [browsing.index.row(at).key for at in browsing.rows(name)] for name in browsing.filters}
    assert keys == {
        "all": ["a", "b", "c", "d", "new"],
        "failed": ["b", "d"],
        "passed": ["a", "c", "new"],
        "changed": ["c", "d"],
        "won": ["c"],
        "lost": ["d"],
    }
    shown = browsing.shown(browsing.rows("lost")[0])
    assert shown.baseline is not None
    assert (shown.row.key, shown.baseline.key, shown.baseline.passed) == ("d", "d", True)
    assert browsing.shown(4).baseline is None
    assert browsing.find(browsing.rows("all"), 1, "PROMPT D", 1, lambda: False) == 3
    assert browsing.find(browsing.rows("all"), 2, "prompt a", -1, lambda: False) == 0
    assert browsing.find(browsing.rows("all"), 0, "nowhere", 1, lambda: False) is None


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{\n "rows": [\n  {\n   "key": "a"\n', "\x00\xff", '{\n "rows": [\n  {\n  }\n ]']
)
def test_other_files_are_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(OperatorError, match=r"r\.json is not a file of results"):
        ResultsIndex(tmp_path / "r.json")


def test_equal_prompts_are_paired_by_expected_answer_and_place(tmp_path: Path) -> None:
    model = write_results(tmp_path / "m.json", {"a": True, "a.2": False, "a.3": True})
    base = write_results(tmp_path / "b.json", {"a": False, "a.2": False, "b": True})
    assert Browsing(AnswersTarget(model, base)).rows("won") == [0]
    other = write_results(tmp_path / "o.json", {"a": False}, expected="5")
    assert Browsing(AnswersTarget(model, other)).rows("changed") == []


def test_a_file_that_changed_is_said(tmp_path: Path) -> None:
    file = write_results(tmp_path / "r.json", {"a": True, "b": True})
    index = ResultsIndex(file)
    file.write_text(file.read_text()[:200])
    with pytest.raises(OperatorError, match="changed since"):
        index.row(1)


def test_differences_are_marked_word_by_word() -> None:
    assert differences("the answer is 5", "the answer is 6 now") == "the answer is [-5-] {+6 now+}"
    assert differences("a b", "a b") == "a b"
    assert differences("", "x") == "{+x+}"


def test_results_are_read_whatever_their_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = json.loads(write_results(tmp_path / "r.json", {"a": True, "b": False}, where='é "x" \\').read_text())
    rows_first = {
        "rows": value["rows"],
        "rows_after": [[], {}, "]", 3],
        **{k: v for k, v in value.items() if k != "rows"},
    }
    texts = {
        "one line": json.dumps(value, separators=(",", ":")),
        "with a mark": "\ufeff" + json.dumps(value, indent=4, ensure_ascii=False),
        "rows first": json.dumps(rows_first, indent="\t").replace("\n", "\r\n"),
    }
    for chunk in (1 << 20, 64):
        monkeypatch.setattr("cockpit.talking.json_rows._CHUNK_BYTES", chunk)
        for name, text in texts.items():
            file = tmp_path / f"{name}.json"
            file.write_bytes(text.encode())
            index = ResultsIndex(file)
            assert (index.model, index.metrics) == ("/m", {"success": 0.5}), name
            assert [(index.row(at).key, index.row(at).where) for at in range(2)] == [
                ("a", 'é "x" \\'),
                ("b", 'é "x" \\'),
            ], name


@pytest.mark.parametrize("cut", range(1, 400, 13))
def test_results_that_are_cut_are_refused_wherever(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit.talking.json_rows._CHUNK_BYTES", 16)
    file = write_results(tmp_path / "r.json", {"a": True})
    text = file.read_text().strip()
    file.write_text(text[: -min(cut, len(text) - 1)])
    with pytest.raises(OperatorError, match=r"r\.json is not a file of results"):
        ResultsIndex(file)
