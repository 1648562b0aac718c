"""Every field of an evaluate stage takes effect: changed alone, the stage measures or says something else.

And with the passage of the field removed, so that whoever reads it gets the unchanged value, it measures the same as
without the change, as in `tests/engines/training/test_fields.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engines.evaluate import stage as evaluate
from engines.evaluate import stage_tests
from engines.events.writers import Warned
from engines.training.fitting import Fitting
from recipes.problems import OperatorError
from recipes.stages.evaluate import EvaluateStage
from tests.engines.small_corpora import write_rows
from tests.engines.training import tiny
from tests.engines.training.observed import read_as
from tests.stage_context import make_context

pytestmark = pytest.mark.torch

STAGE: dict[str, Any] = {"name": "judge", "kind": "evaluate", "model": "m", "data": "d", "max_length": 64}
TESTS: dict[str, Any] = {"test_data": "rows", "checks": ["normalized"], "max_new_tokens": 3}
_TIMES = ("_s", "_per_second", "_bytes")


@dataclass(frozen=True)
class Change:
    """Another value of a field; `given` are fields that both stages have, `data` the input of both."""

    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)
    data: str = "rows"


CHANGES: dict[str, Change] = {
    "model": Change("other model"),
    "data": Change("more"),
    "chat_template": Change("zephyr"),
    "train_on": Change("last-answer", {"max_length": 200}, data="turns"),
    "truncation": Change("answer", {"max_length": 25}),
    "fold_system": Change(True, data="system"),
    "columns": Change({"user": "task", "assistant": "result"}, data="objects"),
    "ignore_keys": Change(["audio"], data="odd key"),
    "where": Change(['prompt = "a?"'], data="some"),
    "on_bad_row": Change("skip", data="bad row"),
    "encoding": Change("latin-1", data="latin"),
    "format": Change("alpaca"),
    "split": Change("val"),
    "max_length": Change(24),
    "max_tokens": Change(3, {"per_device_eval_batch_size": 1}),
    "per_device_eval_batch_size": Change(1),
    "dtype": Change("bfloat16"),
    "load_in_4bit": Change(True),
    "answers": Change(2, {"max_new_tokens": 2}),
    "max_new_tokens": Change(2, {"answers": 1}),
    "test_data": Change("rows", {"max_new_tokens": 3}),
    "tests": Change("probe", {"test_data": "rows", "max_new_tokens": 3}),
    "checks": Change(["contains"], {**TESTS}),
    "answer_batch_size": Change(2, TESTS),
}
ELSEWHERE = {
    "name": "engines/test_host.py::test_a_warning_names_its_stage_and_attempt",
    "launch": "engines/evaluate/test_processes.py::test_two_processes_measure_and_answer_as_one_does",
    "kind": "engines/evaluate/test_fields.py::test_a_field_changed_alone",
    "python": "cockpit/launching/test_interpreters.py::test_an_unusable_interpreter_is_refused",
    "threads": "cockpit/supervision/test_engine_environment.py::test_a_stages_threads_have_priority_over_the_shells",
    "devices": "cockpit/supervision/test_engine_environment.py::test_the_engine_sees_the_stage_s_devices",
    "gate": "engines/evaluate/test_stage_tests.py::test_gates_judge_the_lower_end",
    "retry": "cockpit/schedule/test_scheduling.py::test_a_failed_attempt_is_retried_from_its_checkpoint",
    "train_on_template": "engines/labels/test_stage_rows.py::test_each_field_reaches_the_rules",
    "baseline": "engines/evaluate/test_stage_tests.py::test_the_test_rows_of_a_prepared_split",
    "files": "engines/evaluate/test_gguf_models.py::test_each_adapter_of_an_export_answers_over_each_file",
    "max_tokens_from": "engines/evaluate/test_stage.py::test_tokens_are_taken_from_the_start_or_from_the_whole_split",
}
"""Fields whose effect is elsewhere, and the begin of the name of the test that has it."""
CODE = "engines/evaluate/test_stage_tests.py::test_a_stage_runs_the_code_of_answers_only_where_it_is_allowed"
ELSEWHERE |= {
    "allow_code_execution": CODE,
    "code_timeout_s": CODE,
    "judge_command": "engines/evaluate/test_stage_tests.py::test_checks_with_settings_and_the_operators_program",
    **dict.fromkeys(
        ("judge_url", "judge_model", "judge_key_env", "judge_rubric"),
        "engines/evaluate/test_fields.py::test_each_field_of_a_judge_reaches_it",
    ),
}
LM_EVAL = "engines/evaluate/test_lm_eval.py::test_the_program_gets_model_and_fields"
ELSEWHERE |= dict.fromkeys(
    [f"lm_eval_{name}" for name in ("tasks", "python", "include_path", "num_fewshot", "limit", "chat_template")],
    LM_EVAL,
)
DRAWN = "engines/evaluate/test_stage_tests.py::test_several_answers_to_a_row_are_drawn"
ELSEWHERE |= dict.fromkeys(("temperature", "top_k", "top_p", "sampling_seed", "num_return_sequences"), DRAWN)
INPUTS = ("model", "data")
QUICK = ("data", "max_length", "split", "checks")
"""Fields that the short run has."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The inputs, by the names that a change gives."""
    folder = tmp_path_factory.mktemp("fields")
    talks = [("docstring", f"a{n}?", "yes " * (1 + n % 4)) for n in range(6)]
    return {
        "model": tiny.write_model(folder / "model"),
        "other model": tiny.write_model(folder / "other", seed=2),
        "rows": write_rows(write_rows(folder / "rows", talks), talks[:2], "val").parent / "rows",
        "more": write_rows(folder / "more", talks[:4]),
        "objects": _lines(folder / "objects", {"task": "a?", "result": "b"}),
        "some": _lines(folder / "some", *({"prompt": one, "completion": "bb" + one} for one in ("a?", "ccc?"))),
        "odd key": _lines(folder / "odd", {"prompt": "a?", "completion": "b", "audio": "x.wav"}),
        "bad row": _lines(folder / "bad", {"prompt": "a?", "completion": "b"}, {"prompt": 3, "completion": "b"}),
        "latin": _lines(folder / "latin", {"prompt": "caf\u00e9?", "completion": "b"}, encoding="latin-1"),
        "turns": _lines(folder / "turns", _talk("user", "assistant", "user", "assistant")),
        "system": _lines(folder / "system", _talk("system", "user", "assistant")),
    }


def _lines(folder: Path, *rows: Any, encoding: str = "utf-8") -> Path:
    folder.mkdir()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "test.jsonl").write_text(text, encoding=encoding)
    return folder


def _talk(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles)]}


def _measured(tmp_path: Path, values: Mapping[str, Any], places: Mapping[str, Path], inputs: Mapping[str, str]) -> Any:
    """What a stage measures, answers and says; or why it refuses."""
    given: dict[str, Path | str] = {name: places[place] for name, place in inputs.items()}
    if values.get("test_data") is not None:
        given["test_data"] = places["rows"]
    ctx = make_context(tmp_path, values, inputs=given)
    sizes: list[int] = []

    def note(self: Fitting, rows: Sequence[Any], work: Any) -> Any:
        sizes.append(len(rows))
        return each(self, rows, work)

    each = Fitting.each
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Fitting, "each", note)
        try:
            metrics = evaluate.run(ctx).metrics
        except OperatorError as error:
            return {"refused": error.message.replace(str(tmp_path), "")}
    said = sorted(event.message for event in ctx.events() if isinstance(event, Warned))
    report = json.loads((ctx.out / "report.json").read_text())
    kept = {name: report.get(name) for name in ("protocol", "dtype", "answers", "split")}
    return (
        {name: value for name, value in metrics.items() if not name.endswith(_TIMES)},
        kept,
        said,
        sizes,
        _judged(ctx.out),
    )


def _judged(out: Path) -> Any:
    """How the test rows were asked, and each with its answer and verdicts; None without test rows."""
    file = out / "results.json"
    if not file.exists():
        return None
    results = json.loads(file.read_text())
    rows = [{name: value for name, value in row.items() if not name.endswith(_TIMES)} for row in results["rows"]]
    return results["protocol"], rows


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.thorough]) for name in CHANGES]
)
def test_a_field_changed_alone_changes_what_is_measured_and_only_by_its_own_passage(
    name: str, tmp_path: Path, places: dict[str, Path]
) -> None:
    change = CHANGES[name]
    first, inputs = {**STAGE, **change.given}, {"model": "model", "data": change.data}
    one = _measured(tmp_path / "one", first, places, inputs)
    if name in INPUTS:
        assert _measured(tmp_path / "two", first, places, {**inputs, name: change.value}) != one
        return
    changed = {**first, name: change.value}
    assert _measured(tmp_path / "two", changed, places, inputs) != one
    with read_as(EvaluateStage, name, getattr(EvaluateStage.model_validate(first), name)):
        assert _measured(tmp_path / "three", changed, places, inputs) == one


JUDGE = {"judge_url": "http://127.0.0.1:9/v1", "judge_model": "m", "judge_key_env": "A", "judge_rubric": "short"}


@pytest.mark.parametrize("name", [pytest.param("judge_url", marks=pytest.mark.thorough), *list(JUDGE)[1:]])
def test_each_field_of_a_judge_reaches_it(name: str, tmp_path: Path, places: dict[str, Path]) -> None:
    made: list[Any] = []

    def stop(given: Any, _kept: Path) -> Any:
        made.append(given)
        raise OperatorError("the judge is made")

    first = {**STAGE, **TESTS, "checks": ["judge"], **JUDGE}
    changed = {**first, name: "http://127.0.0.1:8/v1" if name == "judge_url" else "OTHER"}
    inputs = {"model": "model", "data": "rows"}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(stage_tests, "ModelJudge", stop)
        for number, values in enumerate((first, changed)):
            _measured(tmp_path / str(number), values, places, inputs)
        with read_as(EvaluateStage, name, first[name]):
            _measured(tmp_path / "removed", changed, places, inputs)
    assert len(made) == 3
    assert made[0] != made[1]
    assert made[0] == made[2]


def test_every_field_has_its_proof() -> None:
    names = set(EvaluateStage.model_fields)
    assert names - set(CHANGES) - set(ELSEWHERE) == set()
    assert set(CHANGES) | set(ELSEWHERE) <= names
    for name, where in ELSEWHERE.items():
        file, _, test = where.partition("::")
        assert test.removeprefix("test_"), f"{name}: any test would do"
        assert f"def {test}" in (Path(__file__).resolve().parents[2] / file).read_text(encoding="utf-8"), name
