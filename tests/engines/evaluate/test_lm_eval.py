"""Tasks of lm_eval: the program gets the model and the fields, its numbers are metrics, and its failures have words.

The program here is a stand-in that writes what it was given and results in the form of lm_eval; the real one is an
opt-in check, because an environment of Cockpit does not have it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engines.context import StageFailedError, StopRequested
from engines.evaluate import lm_eval
from engines.evaluate.lm_eval import metrics_of, run_lm_eval
from engines.events.attempts import ProgramUsed
from engines.words import Verb
from recipes.problems import OperatorError
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.gates import unreported
from tests.exporters.small_models import build_adapter
from tests.stage_context import TriedContext, make_context

pytestmark = pytest.mark.torch

STAGE = {"name": "judge", "kind": "evaluate", "model": "m", "data": "d", "lm_eval_tasks": ["city", "mmlu_x"]}
RESULTS = {
    "results": {
        "city": {"alias": "city", "acc,none": 0.85, "acc_stderr,none": "N/A", "sample_len": 20},
        "mmlu_x": {"exact_match,strict-match": 0.5, "exact_match,flexible-extract": float("nan")},
    }
}
PROGRAM = """
import json, os, pathlib, sys
if sys.argv[1] == "-c":
    print("0.4.13")
    sys.exit()
sys.stderr.write("\\rRunning: 0%\\rRunning: 100%\\n")
{before}
links = {{name: os.path.realpath(name) for name in os.listdir() if os.path.islink(name)}}
pathlib.Path("results/m").mkdir(parents=True)
path, hub = os.environ.get("PYTHONPATH"), os.environ["HF_HUB_OFFLINE"]
given = {{"argv": sys.argv[1:], "links": links, "path": path, "hub": hub}}
pathlib.Path({seen!r}).write_text(json.dumps(given))
pathlib.Path("results/m/results_2026.json").write_text({results!r})
"""


def program(folder: Path, before: str = "", results: str = json.dumps(RESULTS)) -> str:
    """An interpreter that has the stand-in."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}" + PROGRAM.format(before=before, seen=str(folder / "seen"), results=results))
    path.chmod(0o755)
    return str(path)


def context(tmp_path: Path, model: Path, **fields: Any) -> TriedContext:
    return make_context(tmp_path, {**STAGE, **fields}, inputs={"model": model, "data": tmp_path})


def test_the_program_gets_model_and_fields_and_its_numbers_are_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/cockpit")
    model = tmp_path / "a, model=x"
    model.mkdir()
    fields = {
        "lm_eval_python": program(tmp_path), "lm_eval_include_path": str(tmp_path), "lm_eval_num_fewshot": 3,
        "lm_eval_limit": 7, "lm_eval_chat_template": True, "dtype": "float32", "per_device_eval_batch_size": 2,
    }  # fmt: skip
    ctx = context(tmp_path / "run", model, **fields)
    result = run_lm_eval(ctx)
    assert result.metrics == {"lm_eval.city.acc": 0.85, "lm_eval.mmlu_x.exact_match.strict-match": 0.5}
    assert [artifact.path for artifact in result.artifacts] == ["lm_eval.json"]
    assert json.loads((ctx.out / "lm_eval.json").read_text())["results"]["city"]["acc,none"] == 0.85
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["links"] == {"model": str(model)}
    assert (seen["path"], seen["hub"]) == (None, "1"), "not with Cockpit's modules, and without a hub"
    assert seen["argv"] == [
        "-m", "lm_eval", "--model", "hf", "--model_args", "pretrained=./model,dtype=float32", "--tasks", "city,mmlu_x",
        "--batch_size", "2", "--output_path", "results", "--include_path", str(tmp_path), "--num_fewshot", "3",
        "--limit", "7", "--apply_chat_template",
    ]  # fmt: skip
    (used,) = [event for event in ctx.events() if isinstance(event, ProgramUsed)]
    assert (used.program, used.version, used.argv[1:]) == ("lm_eval", "0.4.13", seen["argv"])


def test_an_adapter_is_given_with_its_base(tmp_path: Path) -> None:
    from tests.engines.small_corpora import stdlib_text, tiny_model, tokenizer_of

    base = tiny_model(tokenizer_of(stdlib_text(tmp_path, "json"), tmp_path / "tokenizer"), tmp_path / "base")
    adapter = build_adapter(tmp_path / "adapter", base)
    run_lm_eval(context(tmp_path / "run", adapter, lm_eval_python=program(tmp_path)))
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["links"] == {"model": str(base), "adapter": str(adapter)}
    assert "pretrained=./model,dtype=auto,peft=./adapter" in seen["argv"]


@pytest.mark.parametrize(
    ("before", "results", "words"),
    [
        ("sys.exit('ValueError: no\\x1b[2J dataset')", "{}", "lm_eval ended with status 1: ValueError: no dataset"),
        ("os.kill(os.getpid(), 9)", "{}", "lm_eval ended with signal 9: Running: 100%"),
        ("", "{}", "the results of lm_eval cannot be read: no task has a number"),
        ("", "{", "the results of lm_eval cannot be read"),
        ("sys.exit(0)", "{}", "lm_eval wrote no results"),
    ],
)
def test_a_failure_of_the_program_is_the_stages(tmp_path: Path, before: str, results: str, words: str) -> None:
    with pytest.raises(StageFailedError, match=words.replace("[", r"\[")):
        run_lm_eval(context(tmp_path / "run", tmp_path, lm_eval_python=program(tmp_path, before, results)))


def test_a_stop_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    python = program(tmp_path, f"import time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(10_000)")
    ctx = context(tmp_path / "run", tmp_path, lm_eval_python=python)

    def stop_once_it_runs() -> None:
        if started.exists() and started.read_text():
            raise StopRequested(Verb.STOP)

    monkeypatch.setattr(ctx, "check_stop", stop_once_it_runs)
    with pytest.raises(StopRequested):
        run_lm_eval(ctx)
    assert not Path(f"/proc/{started.read_text()}").exists()


def test_an_interpreter_without_the_program_is_said_with_what_to_do(tmp_path: Path) -> None:
    for python in (sys.executable, str(tmp_path / "none")):
        with pytest.raises(OperatorError, match="lm_eval is not installed in") as raised:
            lm_eval.version_in(python)
        assert raised.value.hint is not None
        assert "lm_eval_python" in raised.value.hint


def test_without_tasks_nothing_is_started(tmp_path: Path) -> None:
    assert run_lm_eval(context(tmp_path / "run", tmp_path, lm_eval_tasks=[])).metrics == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lm_eval_tasks": [], "lm_eval_limit": 3}, "lm_eval_limit — applies to lm_eval_tasks"),
        ({"lm_eval_tasks": [], "lm_eval_chat_template": True}, "lm_eval_chat_template — applies to"),
        ({"lm_eval_tasks": ["a,b"]}, "not the name of a task"),
        ({"lm_eval_tasks": ["--model"]}, "not the name of a task"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EvaluateStage.model_validate({**STAGE, **fields})


def test_gates_may_name_its_metrics() -> None:
    gate = {"metric": "lm_eval.city.acc", "op": ">=", "value": 0.7}
    assert unreported("evaluate", {**STAGE, "gate": [gate]}) == []
    assert unreported("evaluate", {**STAGE, "lm_eval_tasks": [], "gate": [gate]}) != []


@pytest.mark.parametrize("results", [None, [], {"results": []}, {"results": {"a": 3}}, {"results": {"a": {"x": 1}}}])
def test_results_of_another_form_are_refused(results: Any) -> None:
    with pytest.raises(ValueError, match="no task has a number"):
        metrics_of(results)
