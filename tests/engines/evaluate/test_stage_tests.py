"""An evaluate stage with test rows measures success with its interval, continues in a new attempt, and has gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engines.context import StopRequested
from engines.evaluate import stage_tests
from engines.evaluate.stage import run
from engines.events.results import GateChecked, SampledText
from engines.gates import check_gates
from engines.judging.sets.general import general_set
from engines.judging.unit_tests import programs_of
from engines.words import GateResult
from recipes.fingerprint import fingerprint
from recipes.problems import OperatorError
from recipes.stages.evaluate import PAIR_METRICS, TEST_METRICS, EvaluateStage
from recipes.stages.gates import unreported
from recipes.stages.registry import row_of
from tests.engines.small_corpora import stdlib_text, tiny_model, tokenizer_of, write_rows
from tests.stage_context import TriedContext, make_context

pytestmark = pytest.mark.torch

ROWS = [("docstring", f"What is `f{at}`?", "It adds.") for at in range(6)]
STAGE = {"name": "judge", "kind": "evaluate", "model": "m", "data": "d", "max_new_tokens": 4, "max_length": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    tokenizer = tokenizer_of(stdlib_text(folder, "json"), folder / "tokenizer")
    return {"model": tiny_model(tokenizer, folder / "model"), "data": write_rows(folder / "messages", ROWS)}


def context(tmp_path: Path, made: dict[str, Path], attempt: int = 1, **fields: Any) -> TriedContext:
    given = {**STAGE, "test_data": "d", "checks": ["normalized"], **fields}
    test_data = fields.get("test_data") or made["data"]
    given["test_data"] = given["test_data"] and "d"
    inputs: dict[str, Path | str] = {"model": made["model"], "data": made["data"], "test_data": test_data}
    if "baseline" in fields:
        inputs["baseline"] = fields["baseline"]
        given["baseline"] = "b"
    return make_context(tmp_path, given, inputs=inputs, attempt=attempt)


def test_the_test_rows_of_a_prepared_split_are_answered_and_every_metric_is_declared(
    tmp_path: Path, made: dict[str, Path]
) -> None:
    ctx = context(tmp_path, made)
    result = run(ctx)
    results = json.loads((ctx.out / "results.json").read_text())
    assert [artifact.path for artifact in result.artifacts] == ["report.json", "results.json"]
    assert results["metrics"]["test_rows"] == result.metrics["test_rows"] == 6
    assert result.metrics["success_low"] <= result.metrics["success"] <= result.metrics["success_high"]
    assert set(results["metrics"]) <= set(TEST_METRICS)
    assert set(result.metrics) - {"tokens"} <= set(row_of(ctx.stage).metrics(ctx.stage))
    assert (ctx.out / "results.json.answers.jsonl").read_bytes().count(b"\n") == 7
    assert sum(isinstance(event, SampledText) for event in ctx.events()) == 6
    again = context(tmp_path / "again", made, baseline=ctx.out)
    pairs = run(again).metrics
    assert {name: pairs[name] for name in ("difference", "won_rows", "lost_rows")} == {
        "difference": 0, "won_rows": 0, "lost_rows": 0,
    }  # fmt: skip
    assert set(PAIR_METRICS) <= set(pairs)


def test_a_stage_runs_the_code_of_answers_only_where_it_is_allowed(
    tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Add.", "tests": "assert add(1) == 2"}) + "\n")
    with pytest.raises(OperatorError, match="which is off"):
        run(context(tmp_path / "off", made, test_data=rows, checks=[]))
    given: list[int] = []
    monkeypatch.setattr(stage_tests, "programs_of", lambda timeout_s: given.append(timeout_s) or programs_of(timeout_s))
    fields: dict[str, Any] = {"allow_code_execution": True, "code_timeout_s": 7, "test_data": rows, "checks": []}
    ctx = context(tmp_path / "on", made, **fields)
    assert run(ctx).metrics["success"] == 0.0
    assert given == [7]
    (row,) = json.loads((ctx.out / "results.json").read_text())["rows"]
    assert row["verdicts"][0]["check"] == "unit_tests"
    assert row["verdicts"][0]["passed"] is False


def test_checks_with_settings_and_the_operators_program_judge_a_whole_file(
    tmp_path: Path, made: dict[str, Path]
) -> None:
    checks = ["regex=(?s)^.*$", 'json_schema={"type": "object"}', "command"]
    program = ["python3", "-c", "import sys; print('never'); sys.exit(1)"]
    ctx = context(tmp_path, made, checks=checks, judge_command=program)
    run(ctx)
    row = json.loads((ctx.out / "results.json").read_text())["rows"][0]
    assert [one["check"] for one in row["verdicts"]] == ["regex", "json_schema", "command"]
    assert [one["passed"] for one in row["verdicts"]] == [True, False, False]
    assert row["verdicts"][2]["reason"] == "never"


def test_several_answers_to_a_row_are_drawn_and_counted_as_one_row(tmp_path: Path, made: dict[str, Path]) -> None:
    fields: dict[str, Any] = {"temperature": 5.0, "top_k": 50, "top_p": 0.9, "sampling_seed": 3}
    fields["num_return_sequences"] = 3
    ctx = context(tmp_path, made, **fields)
    metrics = run(ctx).metrics
    results = json.loads((ctx.out / "results.json").read_text())
    assert (metrics["test_rows"], len(results["rows"])) == (6, 18)
    assert {"pass_at_1", "pass_at_3"} <= set(metrics) <= {*row_of(ctx.stage).metrics(ctx.stage), "tokens"}
    sampling = results["protocol"]["sampling"]
    assert (sampling["temperature"], sampling["top_k"], sampling["top_p"], sampling["seed"]) == (5.0, 50, 0.9, 3)
    assert len({row["answer"] for row in results["rows"][:3]}) > 1


def test_a_new_attempt_continues_with_the_answers_of_the_last_one(
    tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = context(tmp_path, made)
    answered = 0

    def stop_after_three() -> None:
        nonlocal answered
        answered = sum(path.read_bytes().count(b"\n") for path in first.out.parents[1].glob("answers-*.jsonl"))
        if answered >= 4:
            raise StopRequested

    monkeypatch.setattr(first, "check_stop", stop_after_three)
    with pytest.raises(StopRequested):
        run(first)
    kept = next(first.out.parents[1].glob("answers-*.jsonl"))
    before = kept.read_bytes()
    second = context(tmp_path, made, attempt=2)
    assert run(second).metrics["test_rows"] == 6
    assert kept.read_bytes().startswith(before)
    assert kept.read_bytes().count(b"\n") == 7


def test_gates_judge_the_lower_end_and_never_pass_what_was_not_measured(tmp_path: Path, made: dict[str, Path]) -> None:
    gates = [
        {"metric": "success_low", "op": ">=", "value": 0.98},
        {"metric": "valid_json", "op": ">=", "value": 0.0},
        {"metric": "test_rows", "op": ">=", "value": 6},
    ]
    ctx = context(tmp_path, made, gate=gates)
    refused = check_gates(ctx, {"success_low": 0.8897, "test_rows": 31.0})  # 31 of 31
    results = [event.result for event in ctx.events() if isinstance(event, GateChecked)]
    assert results == [GateResult.FAIL, GateResult.NOT_MEASURED, GateResult.PASS]
    assert refused == "success_low >= 0.98 (got 0.889700); valid_json >= 0 (got not measured)"


def test_the_general_questions_before_and_after_measure_what_was_forgotten(
    tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(general_set().read_text().splitlines(keepends=True)[:10]))
    monkeypatch.setattr("engines.evaluate.stage_tests.general_set", lambda: few)
    fields: dict[str, Any] = {
        "tests": "general",
        "test_data": None,
        "checks": [],
        "max_new_tokens": 1,
        "answer_batch_size": 10,
    }
    before = context(tmp_path / "before", made, **fields)
    assert run(before).metrics["test_rows"] == 10
    file = before.out / "results.json"
    results = json.loads(file.read_text())
    for row in results["rows"][:5]:  # a base model that knew half of them
        row["passed"] = True
    file.write_text(json.dumps(results))
    after = context(tmp_path / "after", made, baseline=before.out, **fields)
    metrics = run(after).metrics
    assert metrics["forgetting"] == -metrics["difference"] == 0.5
    assert metrics["forgetting_low"] < metrics["forgetting"] < metrics["forgetting_high"]
    assert unreported("evaluate", {**STAGE, **fields, "baseline": "b", "gate": [
        {"metric": "forgetting_high", "op": "<=", "value": 0.05}
    ]}) == []  # fmt: skip


def test_a_gate_on_a_files_metric_needs_files() -> None:
    gate = [{"metric": "success.Q4_K_M", "op": ">", "value": 0.5}]
    assert unreported("evaluate", {**STAGE, "test_data": "t", "files": "gguf", "gate": gate}) == []
    assert [name for _, name, _, _ in unreported("evaluate", {**STAGE, "test_data": "t", "gate": gate})] == [
        "success.Q4_K_M"
    ]
    assert unreported("evaluate", {**STAGE, "gate": [{"metric": "success", "op": ">", "value": 0.5}]})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"checks": ["number"]}, "applies to test rows"),
        ({"baseline": "b"}, "applies to test rows"),
        ({"tests": "probe"}, "applies to test rows"),
        ({"tests": "general", "test_data": "t"}, "remove one of them"),
        ({"test_data": "t", "checks": ["nummer"]}, "did you mean number"),
        ({"allow_code_execution": True}, "applies to test rows"),
        ({"test_data": "t", "checks": ["command"]}, "command needs judge_command"),
        ({"test_data": "t", "checks": ["judge"]}, "judge needs judge_url"),
        ({"test_data": "t", "top_k": 5}, "applies to drawn answers"),
        ({"temperature": 1.0}, "applies to test rows"),
        ({"test_data": "t", "temperature": 1.0, "num_return_sequences": 2, "baseline": "b"}, "compares one answer"),
        ({"test_data": "t", "checks": ["regex"]}, "no such check of a whole file"),
        ({"test_data": "t", "checks": ["regex=("]}, "regex cannot be used"),
        ({"test_data": "t", "checks": ["json_schema={"]}, "json_schema cannot be used"),
        ({"test_data": "t", "judge_url": "http://127.0.0.1:1"}, "judge_model — required"),
        ({"test_data": "t", "judge_rubric": "x"}, "judge_rubric — applies to judge_url"),
        (
            {"test_data": "t", "judge_url": "http://a", "judge_model": "m", "judge_key_env": "sk-1"},
            "not the name",
        ),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        EvaluateStage.model_validate({**STAGE, **fields})


def test_an_evaluation_without_tests_keeps_the_fingerprint_of_older_versions() -> None:
    new = EvaluateStage.model_validate(STAGE).model_dump(mode="json")
    added = (
        "tests", "test_data", "checks", "baseline", "files", "answer_batch_size", "dtype", "load_in_4bit",
        "allow_code_execution", "code_timeout_s", "judge_command", "judge_url", "judge_model", "judge_key_env",
        "judge_rubric", "temperature", "top_p", "top_k", "sampling_seed", "num_return_sequences",
    )  # fmt: skip
    old = {key: value for key, value in new.items() if key not in added}
    assert fingerprint(new, []) == fingerprint(old, [])
