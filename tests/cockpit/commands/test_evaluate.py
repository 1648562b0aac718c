"""`cockpit evaluate` says what was measured with its uncertainty, and names mistakes before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cockpit.cli import main
from cockpit.commands.evaluate import _lines, _Pace
from engines.words import ExitCode

METRICS = {
    "success": 31 / 31, "success_low": 0.8897, "success_high": 1.0, "test_rows": 31, "unjudged_rows": 0, "ended": 1.0,
    "latency_p50_s": 0.5, "latency_p95_s": 1.25, "first_token_p50_s": 0.1, "answer_tokens_per_second": 12.0,
}  # fmt: skip


def lines(**fields: Any) -> str:
    given: dict[str, Any] = {
        "model": "/m/model",
        "metrics": METRICS,
        "comparison": None,
        "differences": None,
        "tests": {},
        "shown": {"failed": []},
        "counts": {"failed": 0},
    }
    return "\n".join(_lines({**given, **fields}))


def test_a_small_sample_is_shown_with_its_interval() -> None:
    shown = lines()
    assert "100.0%" in shown
    assert "88.9% to 100.0%" in shown


def test_rows_without_a_verdict_and_rows_that_changed_are_named() -> None:
    comparison = {
        "rows": 30, "only_model": 1, "only_baseline": 0, "baseline_success": 0.9, "difference": 0.1,
        "difference_low": 0.0, "difference_high": 0.2, "p_value": 0.25, "won": ["a", "b", "c"], "lost": [],
        "same_answers": 0.5, "unpaired": ["t:\x1b[31m7"], "other_expected": 1,
    }  # fmt: skip
    row = {"where": "t:\x1b[31m4", "reason": "got 3"}
    shown = lines(
        metrics={**METRICS, "unjudged_rows": 2},
        comparison=comparison,
        shown={"lost": [], "won": [row]},
        counts={"lost": 0, "won": 3},
    )
    assert "2 rows; not counted as passed" in shown
    assert "+10.0 points (95 %: +0.0 to +20.0), p = 0.25" in shown
    assert "won 3, lost 0" in shown
    assert "1 rows are only in one of the two, not compared (1 of the model, 0 of the baseline): t:" in shown
    assert "1 of them have the same prompt and another expected answer" in shown
    assert "the same answer to 50.0% of the rows" in shown
    assert "\x1b" not in shown


def test_a_loss_is_shown_with_its_protocol_and_needs_no_test_rows() -> None:
    metrics = {"loss": 2.4134, "perplexity": "Infinity", "scored_tokens": 1234}
    shown = lines(
        metrics=metrics, tests=None, protocol={"loss": "answers(max_length=512), Q4_K_M weights in llama.cpp"}
    )
    assert shown.startswith("loss 2.413, perplexity inf on 1234 tokens: answers(max_length=512), Q4_K_M weights")


def test_differing_answers_are_explained_by_the_gap_of_their_first_tokens() -> None:
    gaps = [("a", 0.001), ("b", -0.5), ("c", None), ("e", 0.02)]
    given = [{"name": name, "at": 3, "model": " x", "baseline": "\x1b", "gap": gap} for name, gap in gaps]
    given.append({"name": "d", "at": 3, "model": "", "baseline": "y", "gap": None})
    shown = lines(differences=given)
    assert "baseline's: 5 answers; " in shown
    assert "0.020 apart in the median, at most 0.50" in shown
    assert shown.index("gap -0.5") < shown.index("gap 0.02"), "the largest first, whichever token is likelier"
    assert "the model does not have this token" in shown
    assert "the shorter one reached its end" in shown
    assert "\x1b" not in shown


def test_the_time_left_is_that_of_the_part_that_was_done_since() -> None:
    """Answers that were kept before took no time now."""
    pace = _Pace()
    assert pace.left_s(40, 100, "answers", 10.0) is None
    assert pace.left_s(50, 100, "answers", 15.0) == 25.0
    assert pace.left_s(0, 10, "verdicts", 20.0) is None
    assert pace.left_s(4, 10, "verdicts", 22.0) == 3.0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([".", "--output", "o"], "nothing to evaluate on"),
        ([".", "--test-data", "t", "--output", "o", "--explain"], "--explain"),
        ([".", "--data", "none", "--output", "o"], "--data — no file or folder"),
        ([".", "--data", "t", "--max-tokens", "99999999999", "--output", "o"], "must be a whole number"),
        (["./none", "--test-data", "t", "--output", "o"], "MODEL — no file or folder"),
        ([".", "--test-data", "none", "--output", "o"], "--test-data — no file"),
        ([".", "--test-data", "t", "--output", "none/o"], "--output — no folder"),
        ([".", "--test-data", "t", "--output", "o", "--baseline", "none"], "--baseline — no file"),
        ([".", "--test-data", "t", "--output", "o", "--judge", "'"], "--judge — not a command"),
        ([".", "--test-data", "t", "--output", "o", "--judge-model", "m"], "--judge-model — applies to --judge-url"),
        ([".", "--test-data", "t", "--output", "o", "--check", "json_schema=none"], "--check json_schema — no file"),
        ([".", "--test-data", "t", "--output", "o", "--batch", "0"], "must be a whole number"),
    ],
)
def test_mistakes_end_with_status_2(
    words: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").write_text("{}\n")
    try:
        code = int(main(["evaluate", *words]))
    except SystemExit as error:
        code = int(str(error.code))
    assert code == ExitCode.MISTAKE
    assert problem in capsys.readouterr().err
