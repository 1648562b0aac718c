"""The larger shipped recipes, reduced by `--set`: all stages of each, on less text and fewer steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cockpit.runs.reader import read_now
from cockpit.runs.state import RunState
from cockpit.runs.verify import check_descent
from engines.run_dir.paths import RunDir
from engines.words import ExitCode
from tests.exporters.small_models import build_model, build_tokenizer
from tests.runs.harness import ROOT, run_to_success

pytestmark = [pytest.mark.torch, pytest.mark.slow]
CORPUS = ("corpus.max_bytes=600000", "tokenizer.vocab_size=512")


def steps(stage: str, count: int) -> tuple[str, ...]:
    return (
        f"{stage}.max_steps={count}",
        f"{stage}.save_steps={count}",
        f"{stage}.eval_steps={count}",
        f"{stage}.max_length=96",
    )


def run_recipe(name: str, runs: Path, *sets: str) -> tuple[RunDir, RunState]:
    run, _ = run_to_success(ROOT / "recipes" / f"{name}.toml", runs, *sets)
    return run, read_now(run).state


def parity(run: RunDir) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run.out("gguf") / "parity.json").read_text())
    assert value["passed"] is True
    return value


@pytest.mark.thorough
def test_four_phases_give_one_base_in_every_type_and_three_proven_adapters(tmp_path: Path) -> None:
    shrunk = [
        *CORPUS,
        *steps("foundation", 30),
        "foundation.num_hidden_layers=2",
        "gguf.parity_positions=300",
        "gguf.max_length=96",
    ]
    for stage in ("base", "atlas", "marketing", "nexus"):
        shrunk += steps(stage, 6)
    run, state = run_recipe("four-phases", tmp_path, *shrunk)
    found = parity(run)
    assert [file["file_type"] for file in found["files"]] == ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S"]
    assert [item["name"] for item in found["adapters"]] == ["atlas", "marketing", "nexus"]
    for item in found["adapters"]:
        assert len(item["over"]) == 6
        assert all(over["passed"] for over in item["over"])
    merged = state.stage("base-merged").metrics["mean_kl"]
    assert merged is not None
    assert merged < 1e-6, "the merged base is the adapter over the foundation"
    links = list(check_descent(run.out("gguf"), [tmp_path]))
    assert {link.verdict for link in links} == {"whole"}
    names = {link.name.partition(":")[2] for link in links}
    assert names >= {
        "corpus",
        "tokenizer",
        "shards",
        "foundation",
        "base",
        "base-merged",
        "atlas",
        "marketing",
        "nexus",
        "gguf",
    }
    assert {"foundation step 30", "atlas step 6"} <= names, "the checkpoints that the weights are of"


@pytest.mark.thorough
def test_a_code_base_is_learned_merged_halfway_and_at_the_end_and_exported(tmp_path: Path) -> None:
    shrunk = [*CORPUS, *steps("base", 30), *steps("tuned", 8), "base.num_hidden_layers=2", "gguf.parity_positions=300"]
    shrunk += ["before.max_tokens=400", "half-after.max_tokens=400", "after.max_tokens=400", "gguf.max_length=96"]
    run, state = run_recipe("codebase", tmp_path, *shrunk)
    assert parity(run)["files"]
    losses = [state.stage(name).metrics["loss"] for name in ("before", "half-after", "after")]
    assert len(set(losses)) == 3, "half of an adapter is another model than none or all of it"


@pytest.mark.thorough
def test_interactions_are_learned_and_exported(tmp_path: Path) -> None:
    shrunk = [
        *CORPUS,
        *steps("base", 30),
        "base.num_hidden_layers=2",
        "gguf.parity_positions=300",
        "gguf.max_length=96",
    ]
    shrunk += ["tuned.max_length=96", "tuned.num_train_epochs=1", "interactions.max_examples=60"]
    run, _ = run_recipe("interactions", tmp_path, *shrunk)
    assert parity(run)["files"]


def _rows(file: Path, count: int) -> Path:
    rows = (
        {"category": f"kind {number % 3}", "messages": _turns(f"Turn on lamp {number}.", f'{{"lamp": {number}}}')}
        for number in range(count)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _turns(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


@pytest.mark.thorough
def test_four_phases_of_a_14b_model_run_with_another_model_and_other_data(tmp_path: Path) -> None:
    model = build_model(tmp_path / "model", build_tokenizer(tmp_path / "tokenizer"))
    rows = _rows(tmp_path / "rows.jsonl", 120)
    data = [f"{phase}-rows.data={rows}" for phase in ("base", "atlas", "marketing", "nexus")]
    run, ended = run_recipe(
        "csdl-14b", tmp_path / "runs", f"base.model={model}", f"base-merged.model={model}", *data, *JUDGED
    )
    assert [item["name"] for item in parity(run)["adapters"]] == ["atlas", "marketing", "nexus"]
    metrics = ended.stage("gguf").metrics
    found = {name: metrics[f"{name}_kl_to_trained"] for name in ("model", "f16", "q8_0", "atlas_f16", "nexus_q4_k_s")}
    assert None not in found.values(), found


JUDGED = ["judge.max_new_tokens=2", "judge.gate=[]"]
"""A random model writes nothing that a gate lets pass."""

_GATED = """
schema = 1
name = "gated"
[[stage]]
name = "tuned"
kind = "finetune"
model = "./model"
data = "./rows.jsonl"
load_in_4bit = true
max_steps = 2
max_length = 96
[[stage]]
name = "merged"
kind = "merge"
model = "./model"
adapter = "tuned"
[[stage.gate]]
metric = "kl_to_trained"
op = "<"
value = 10
[[stage]]
name = "gguf"
kind = "export"
model = "merged"
file_types = ["Q8_0"]
parity_positions = 64
max_length = 32
[[stage.gate]]
metric = "q8_0_mean_kl"
op = "<"
value = 10
[[stage.gate]]
metric = "q8_0_kl_to_trained"
op = "<"
value = 1e-9
"""


@pytest.mark.thorough
def test_a_gate_refuses_files_that_are_too_far_from_what_was_trained_over_four_bits(tmp_path: Path) -> None:
    build_model(tmp_path / "model", build_tokenizer(tmp_path / "tokenizer"))
    _rows(tmp_path / "rows.jsonl", 24)
    (tmp_path / "gated.toml").write_text(_GATED)
    command = [
        sys.executable,
        "-m",
        "cockpit",
        "run",
        str(tmp_path / "gated.toml"),
        "--runs-dir",
        str(tmp_path / "runs"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == ExitCode.REFUSED, done.stdout[-2000:] + done.stderr[-2000:]
    run = RunDir(next(path.parent for path in (tmp_path / "runs").glob("*/run.json")))
    gates = {gate.metric: gate.result for stage in read_now(run).state.stages for gate in stage.gates}
    assert gates == {"kl_to_trained": "pass", "q8_0_mean_kl": "pass", "q8_0_kl_to_trained": "fail"}


@pytest.mark.thorough
def test_a_7b_model_on_interactions_runs_with_another_model_and_other_data(tmp_path: Path) -> None:
    model = build_model(tmp_path / "model", build_tokenizer(tmp_path / "tokenizer"))
    folder = tmp_path / "interactions"
    folder.mkdir()
    for number in range(40):
        row = {
            "id": number,
            "task": {"description": f"Count to {number}.", "category": "counting"},
            "execution": {"output": f"{number} it is."},
        }
        (folder / f"{number}.json").write_text(json.dumps(row))
    models = [f"{stage}.model={model}" for stage in ("tuned", "merged", "before")]
    run, state = run_recipe("qwen2.5-coder-7b-cpu", tmp_path / "runs", f"interactions.data={folder}", *models, *JUDGED)
    assert parity(run)
    judged = state.stage("judge").metrics
    assert {"success.Q4_K_M", "success_low.Q4_K_M", "latency_mean_s.Q4_K_M", "peak_rss_bytes.Q4_K_M"} <= set(judged)
    assert [state.stage(name).metrics["loss"] for name in ("before", "after")]
    assert any((run.root / "stages" / "tuned" / "tensorboard").iterdir())


@pytest.mark.thorough
def test_a_coder_in_4_bits_on_a_code_base_runs_with_another_model_and_other_data(tmp_path: Path) -> None:
    model = build_model(tmp_path / "model", build_tokenizer(tmp_path / "tokenizer"))
    sources = tmp_path / "sources"
    sources.mkdir()
    for number in range(24):
        (sources / f"part{number}.py").write_text(f'class Part{number}:\n    """Keeps part {number}."""\n')
    models = [f"{stage}.model={model}" for stage in ("tuned", "merged", "halfway")]
    run, state = run_recipe("codeanvil-6.7b-qlora", tmp_path / "runs", f"questions.data={sources}", *models)
    assert parity(run)
    assert state.stage("half-after").metrics["loss"] is not None


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["auton-slm-tiny", "llama-30m"])
def test_a_recipe_of_a_named_size_goes_from_text_through_its_gates_to_proven_files(name: str, tmp_path: Path) -> None:
    small = [
        *CORPUS, *steps("base", 30), "corpus.source=python-stdlib", "base.num_hidden_layers=1", "base.warmup_steps=2",
        "base.learning_rate=2e-3", "base.bf16=false", "base.dataloader_num_workers=0", "base.eval_max_tokens=2000",
        "base.per_device_train_batch_size=4", "base.gradient_accumulation_steps=1", "held-out.max_length=96",
        "held-out.max_tokens=2000", "gguf.parity_positions=300", "gguf.max_length=96",
        'base.gate=[{metric = "eval_perplexity", op = "<", value = 500.0}]', "held-out.gate=[]",
        "base.guards.no_improvement=30",  # a share of 30 steps is within the noise of their losses
    ]  # fmt: skip
    run, state = run_recipe(name, tmp_path, *small)
    assert [file["file_type"] for file in parity(run)["files"]] == ["F16", "Q8_0", "Q4_K_M"]
    perplexity = state.stage("held-out").metrics["perplexity"]
    assert perplexity is not None
    assert perplexity < 500, "a vocabulary of 512, and the model has learned something"
