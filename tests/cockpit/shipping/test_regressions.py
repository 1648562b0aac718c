"""Planted regressions are refused, each with the right reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cockpit.shipping.check import Result
from cockpit.shipping.judge import Judged, judge_file
from engines.artifacts.manifest import read_manifest, write_manifest
from engines.events.results import Evaluated
from engines.events.runs import StageSucceeded
from engines.files import file_sha256
from engines.judging.shares.counts import paired_shares
from engines.llama.gguf_file import read_gguf
from engines.shipping.evidence import Given, collect
from engines.words import GateResult
from recipes.ship.limits import ShipLimits
from tests.cockpit.shipping.planted import Whole
from tests.exporters.small_models import edit_json

pytestmark = pytest.mark.torch


def judged(whole: Whole, target: str = "last", **more: Any) -> Judged:
    return judge_file(whole.runs, target, lambda given: collect(Given(**given)), **more)


def reasons(found: Judged) -> dict[str, str]:
    return {check.name: check.reason for check in found.checks if not check.passed}


# ---- what is planted: each takes a copy of a run that may ship


def wrong_template(whole: Whole) -> None:
    other = whole.identity("Q8_0", template="0" * 64)
    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2, identity=other)


def forgotten_base(whole: Whole) -> None:
    whole.evaluate("general-after", model="Q8_0", right=range(20), general=True, baseline="general-before", attempt=2)


def base_that_knows_nothing(whole: Whole) -> None:
    """The base model passes little more than answers at random do: what was forgotten cannot be seen."""
    whole.evaluate("general-before", model="base", right=range(10), general=True, attempt=2)
    whole.evaluate("general-after", model="Q8_0", right=range(1, 9), general=True, baseline="general-before", attempt=2)


def too_few_questions_to_say(whole: Whole) -> None:
    """Of 60 questions that the base model passes, 14 are lost and 8 others won: chance explains it."""
    whole.evaluate(
        "general-after", model="Q8_0", right=range(14, 68), general=True, baseline="general-before", attempt=2
    )


def forgotten_by_questions_of_the_operator(whole: Whole) -> None:
    """The stage that the limits name asks other questions than Cockpit's."""
    whole.evaluate("general-before", model="base", right=range(100), rows=120, attempt=2)
    whole.evaluate("general-after", model="Q8_0", right=range(60), rows=120, baseline="general-before", attempt=2)


def no_better_than_its_base(whole: Whole) -> None:
    whole.evaluate("judge", model="Q8_0", right=range(12), baseline="before", attempt=2)


def overfitted(whole: Whole) -> None:
    ctx = whole.context("tuned", 1, {"model": "base", "data": "data"})
    for step, loss in ((5, 1.6), (6, 2.4)):
        ctx.emit(
            Evaluated(stage="tuned", attempt=1, step=step, loss=loss, perplexity=2.0, tokens=9, protocol="answers")
        )
    ctx.writer.close()


def wrong_quant(whole: Whole) -> None:
    """The answers in the results of Q8_0 are those of the F16 file."""
    of_f16 = whole.identity("F16")
    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2, identity=of_f16)


def answers_of_another_model(whole: Whole) -> None:
    other = {**whole.identity("Q8_0"), "model": "1" * 64}
    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2, identity=other)


def answers_of_the_folder(whole: Whole) -> None:
    other = {**whole.identity("Q8_0"), "runtime": "transformers"}
    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2, identity=other)


def other_base(whole: Whole) -> None:
    """The general questions are compared with another model than the one that was trained."""
    other = {**whole.identity("base"), "model": "2" * 64}
    whole.evaluate("general-before", model="base", right=range(60), general=True, attempt=2, identity=other)
    whole.evaluate("general-after", model="Q8_0", right=range(60), general=True, baseline="general-before", attempt=2)


def compared_with_itself(whole: Whole) -> None:
    """The merged model is no base of the file: compared with itself, nothing is forgotten."""
    merged = whole.identity("merged")
    whole.evaluate("general-before", model="base", right=range(60), general=True, attempt=2, identity=merged)
    whole.evaluate("general-after", model="Q8_0", right=range(60), general=True, baseline="general-before", attempt=2)


def swapped_adapter(whole: Whole) -> None:
    file = whole.run.out("tuned") / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def an_adapter_over_the_file(whole: Whole) -> None:
    other = {**whole.identity("Q8_0"), "adapter": "3" * 64}
    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2, identity=other)


def truncated_file(whole: Whole) -> None:
    os.truncate(whole.file(), whole.file().stat().st_size - 100)


def replaced_after_evaluation(whole: Whole) -> None:
    """Another file of the same size under the same name: one bit of its weights differs."""
    data = bytearray(whole.file().read_bytes())
    data[-3] ^= 1
    whole.file().write_bytes(data)


def exported_again_after_evaluation(whole: Whole) -> None:
    """A consistent export of another file: manifest, proofs and journal fit, and the answers are of the earlier one."""
    replaced_after_evaluation(whole)
    recommit(whole, "gguf", parity=lambda record: record)


def metadata_edited(whole: Whole) -> None:
    data = whole.file().read_bytes()
    name = str(read_gguf(whole.file()).scalar("general.name", "")).encode()
    assert name
    assert name in data
    whole.file().write_bytes(data.replace(name, name.swapcase() if name.swapcase() != name else name[::-1], 1))


def tokenizer_swapped(whole: Whole) -> None:
    edit_json(whole.run.out("merged") / "tokenizer_config.json", added_by="another person")


def edited_results(whole: Whole) -> None:
    edit_results(whole, lambda value: value["metrics"].update(success=1.0))


def edited_results_with_their_manifest(whole: Whole) -> None:
    def more_success(value: dict[str, Any]) -> None:
        for row in value["rows"]:
            row["passed"] = True
            for verdict in row["verdicts"]:
                verdict["passed"] = True

    edit_results(whole, more_success)
    recommit(whole, "judge")


def faster_answers(whole: Whole) -> None:
    def fast(value: dict[str, Any]) -> None:
        for row in value["rows"]:
            row["latency_s"] = 0.2

    edit_results(whole, fast)
    recommit(whole, "judge")


def baseline_of_other_rows(whole: Whole) -> None:
    """The baseline was asked the first rows and twenty others."""
    whole.evaluate("before", model="base", right=range(10), rows=60, attempt=2)
    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2)


def repeated(whole: Whole, numbers: list[int]) -> int:
    """A task file in which some questions stand several times; returns its rows."""
    rows = len(numbers)
    lines = (json.dumps({"prompt": f"What is {n} + 1?", "answer": str(n + 1)}) for n in numbers)
    (whole.outside / f"task{rows}.jsonl").write_text("".join(line + "\n" for line in lines))
    return rows


def the_same_rows_again(whole: Whole) -> None:
    rows = repeated(whole, [*range(12)] * 4)
    whole.evaluate("before", model="base", right=range(0), rows=rows, attempt=2)
    whole.evaluate("judge", model="Q8_0", right=range(rows), rows=rows, baseline="before", attempt=2)


def a_win_by_repeated_rows(whole: Whole) -> None:
    rows = repeated(whole, [*range(32), *[0] * 18])
    whole.evaluate("before", model="base", right=range(1, 32), rows=rows, attempt=2)
    whole.evaluate("judge", model="Q8_0", right=range(rows), rows=rows, baseline="before", attempt=2)


def too_few_rows(whole: Whole) -> None:
    whole.evaluate("before", model="base", right=range(0), rows=12, attempt=2)
    whole.evaluate("judge", model="Q8_0", right=range(12), rows=12, baseline="before", attempt=2)


def rows_left_out(whole: Whole) -> None:
    """Five rows of the test file are not in the results."""

    def fewer(value: dict[str, Any]) -> None:
        value["rows"] = value["rows"][:35]

    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2, change=fewer)


def gate_removed(whole: Whole) -> None:
    value = json.loads(whole.run.recipe_json.read_text())
    for stage in value["recipe"]["stage"]:
        stage["gate"] = []
    whole.run.recipe_json.write_text(json.dumps(value))


def recipe_edited(whole: Whole) -> None:
    whole.run.recipe_toml.write_text(whole.run.recipe_toml.read_text().replace("value = 0.5", "value = 0.1"))


def gate_failed(whole: Whole) -> None:
    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2, pass_gates=False)


def metric_is_no_number(whole: Whole) -> None:
    def spoil(value: dict[str, Any]) -> None:
        value["metrics"]["success"] = float("nan")

    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2, change=spoil)


def custody_broken(whole: Whole) -> None:
    file = whole.run.out("merged") / "config.json"
    file.write_text(file.read_text() + " ")


def ancestor_gone(whole: Whole) -> None:
    shutil.rmtree(whole.run.out("tuned"))


def proof_failed(whole: Whole) -> None:
    def fail(record: dict[str, Any]) -> None:
        record["files"][1]["behaviour"]["problems"] = ["mean KL 0.3; allowed 1e-4"]

    recommit(whole, "gguf", parity=fail)


def proof_missing(whole: Whole) -> None:
    (whole.run.out("gguf") / "parity.json").unlink()
    recommit(whole, "gguf")


def behaviour_not_compared(whole: Whole) -> None:
    recommit(whole, "gguf", parity=lambda record: [item.pop("behaviour") for item in record["files"]])


def another_machine(whole: Whole) -> None:
    def elsewhere(value: dict[str, Any]) -> None:
        value["machines"] = ["EPYC 9999, 128 cores"]

    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2, change=elsewhere)


def too_slow(whole: Whole) -> None:
    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=2, latency_s=14.0)


def journal_cut(whole: Whole) -> None:
    text = whole.run.journal.read_text()
    whole.run.journal.write_text("".join(line for line in text.splitlines(True) if '"stage_succeeded"' not in line))


def no_general_questions(whole: Whole) -> None:
    shutil.rmtree(whole.run.out("general-after"))


# ---- helpers of what is planted


def edit_results(whole: Whole, change: Callable[[dict[str, Any]], Any]) -> None:
    file = whole.run.out("judge") / "results-Q8_0.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def recommit(whole: Whole, stage: str, parity: Callable[[dict[str, Any]], Any] | None = None) -> None:
    """Make the present content of an output one that the stage committed: its manifest and its journal say so."""
    out = whole.run.out(stage)
    if parity is not None:
        file = out / "parity.json"
        value = json.loads(file.read_text())
        for item in value["files"]:
            item["sha256"] = file_sha256(out / item["file"])
        parity(value)
        file.write_text(json.dumps(value))
    fields = {key: value for key, value in read_manifest(out).items() if key not in ("format", "files")}
    sha256 = write_manifest(out, **fields)
    ctx = whole.begin(stage, 3, {})
    for gate in ctx.stage.gate:
        whole.gate(ctx, gate, GateResult.PASS)
    ctx.emit(StageSucceeded(stage=stage, attempt=3, fingerprint="", manifest_sha256=sha256))
    ctx.writer.close()


@dataclass(frozen=True)
class Regression:
    plant: Callable[[Whole], Any]
    check: str
    reason: str
    limits: tuple[tuple[str, Any], ...] = ()


SPEED = (("latency_p95_s", 12.0),)
REGRESSIONS = [
    Regression(wrong_template, "task.template", "another chat template"),
    Regression(forgotten_base, "general.forgetting", "forgotten: 40 of 84 questions lost and 0 won: a drop of 0.4762"),
    Regression(
        too_few_questions_to_say, "general.forgetting", "not enough evidence: 14 of 84 questions lost and 8 won"
    ),
    Regression(
        forgotten_by_questions_of_the_operator,
        "general.forgetting",
        "forgotten: 40 of 120 questions lost",
        (("general", "general-after"),),
    ),
    Regression(base_that_knows_nothing, "general.base_success", "the base model passes 10 of 84 questions, 7.5"),
    Regression(no_better_than_its_base, "task.difference_low", "difference_low is"),
    Regression(overfitted, "overfitting.tuned", "overfitted: the validation loss rose from 1.200 to 2.400"),
    Regression(wrong_quant, "task.answers", "another model or file"),
    Regression(answers_of_another_model, "task.answers", "another model or file: SHA-256 111111111111…"),
    Regression(answers_of_the_folder, "task.answers", "the answers are of transformers"),
    Regression(other_base, "general.base", "not a model that this file was made from"),
    Regression(compared_with_itself, "general.base", "not a model that this file was made from"),
    Regression(swapped_adapter, "custody.intact", "adapter_model.safetensors has changed"),
    Regression(an_adapter_over_the_file, "task.answers", "an adapter was over the file"),
    Regression(truncated_file, "file", "the export wrote"),
    Regression(replaced_after_evaluation, "file", "has changed since the export wrote it"),
    Regression(exported_again_after_evaluation, "task.answers", "another model or file"),
    Regression(metadata_edited, "file", "has changed since the export wrote it"),
    Regression(tokenizer_swapped, "custody.intact", "tokenizer_config.json"),
    Regression(edited_results, "task.results", "results-Q8_0.json has"),
    Regression(edited_results_with_their_manifest, "task.results", "verdicts are not those of their answers"),
    Regression(faster_answers, "task.results", "do not have the times of the kept answers", SPEED),
    Regression(baseline_of_other_rows, "task.baseline", "another test file"),
    Regression(too_few_rows, "task.rows", "test_rows is 12; allowed >= 30"),
    Regression(the_same_rows_again, "task.rows", "test_rows is 12; allowed >= 30"),
    Regression(a_win_by_repeated_rows, "task.difference_low", "allowed > 0"),
    Regression(rows_left_out, "task.results", "5 rows of the test file were not asked"),
    Regression(gate_removed, "gates", "recipe.json does not have it any more"),
    Regression(recipe_edited, "recipe", "recipe.toml is not the file that was launched"),
    Regression(gate_failed, "gates", "gate failed: success_low.Q8_0 >= 0.5"),
    Regression(metric_is_no_number, "task.results", "metric success is not a number"),
    Regression(custody_broken, "custody.intact", "config.json has"),
    Regression(ancestor_gone, "custody.found", "is not found"),
    Regression(proof_failed, "proofs.behaviour", "mean KL 0.3"),
    Regression(proof_missing, "proofs", "parity.json has no proofs of mine-Q8_0.gguf"),
    Regression(behaviour_not_compared, "proofs.behaviour", "did not compare"),
    Regression(another_machine, "cost.machine", "another machine: EPYC 9999, 128 cores", SPEED),
    Regression(too_slow, "cost.latency_p95_s", "latency_p95_s is 14s", SPEED),
    Regression(journal_cut, "journal", "the journal has no success of stage gguf"),
    Regression(no_general_questions, "general.answers", "no evaluation of general questions"),
]
CORE = {
    wrong_template, forgotten_base, too_few_questions_to_say, truncated_file, edited_results,
    edited_results_with_their_manifest, gate_removed, baseline_of_other_rows, proof_missing, another_machine,
}  # fmt: skip


def cases() -> Iterator[Any]:
    for one in REGRESSIONS:
        marks = [] if one.plant in CORE else [pytest.mark.thorough]
        yield pytest.param(one, id=one.plant.__name__, marks=marks)


@pytest.mark.parametrize("regression", cases())
def test_a_planted_regression_is_refused_with_its_reason(regression: Regression, whole: Whole) -> None:
    regression.plant(whole)
    limits = ShipLimits(**dict(regression.limits))
    found = judged(whole, limits=limits, file_type="Q8_0")
    assert not found.passed
    assert regression.reason in reasons(found).get(regression.check, ""), reasons(found)


def test_a_drop_that_chance_explains_is_no_failure_and_the_reason_says_how_many_questions_would_show_it(
    whole: Whole,
) -> None:
    too_few_questions_to_say(whole)
    found = judged(whole, limits=ShipLimits(), file_type="Q8_0")
    result = next(check for check in found.checks if check.name == "general.forgetting")
    assert result.result == Result.NOT_ENOUGH
    needed = int(result.reason.rpartition("with the same shares, ")[2].split()[0])
    before = needed - 100
    ends = [-paired_shares(round(8 / 84 * n), round(14 / 84 * n), n).low for n in (before, needed)]
    assert ends[0] > ShipLimits().forgetting_high >= ends[1]


def test_a_file_that_was_moved_out_of_its_run_keeps_its_proofs_and_the_run_is_damaged(whole: Whole) -> None:
    moved = whole.root / "moved.gguf"
    whole.file().rename(moved)
    refused = reasons(judged(whole, str(moved), limits=ShipLimits()))
    assert list(refused) == ["custody.intact"]
    assert "mine-Q8_0.gguf is missing" in refused["custody.intact"]


def test_what_was_not_measured_never_passes(whole: Whole) -> None:
    with without(whole.run.out("judge") / "results-Q8_0.json"):
        found = judged(whole, limits=ShipLimits(latency_p95_s=99.0), file_type="Q8_0")
    results = {check.name: check.result for check in found.checks if not check.passed}
    assert results["task.answers"] == results["cost.latency_p95_s"] == Result.NOT_MEASURED


@contextmanager
def without(file: Path) -> Iterator[None]:
    content = file.read_bytes()
    file.unlink()
    yield
    file.write_bytes(content)
