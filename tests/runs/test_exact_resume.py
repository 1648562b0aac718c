"""Real training that is killed with -9 and resumed equals an uninterrupted run; a NaN loss damages nothing."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from cockpit.launching.launch import resume
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.steps import CheckpointCommitted, GuardTripped, Step
from engines.run_dir.paths import RunDir
from tests.runs.harness import events, launch_text, state, wait_for_end

pytestmark = [pytest.mark.torch, pytest.mark.slow]

DATA = """
schema = 1
name = "data"
[[stage]]
name = "corpus"
kind = "prepare"
output = "text"
source = "python-stdlib"
include = ["json/*.py", "email/*.py", "logging/*.py", "http/*.py"]
val_fraction = 0.1
test_fraction = 0.1
[[stage]]
name = "tokenizer"
kind = "tokenizer"
data = "corpus"
vocab_size = 512
[[stage]]
name = "shards"
kind = "prepare"
output = "tokens"
data = "corpus"
tokenizer = "tokenizer"
[[stage]]
name = "questions"
kind = "prepare"
output = "messages"
data = "corpus"
"""
TRAINING = """
max_length = 64
per_device_train_batch_size = 2
gradient_accumulation_steps = 2
max_steps = 60
learning_rate = 3e-3
lr_scheduler_type = "cosine_with_min_lr"
warmup_steps = 5
save_steps = 10
eval_steps = 30
eval_max_tokens = 500
"""
PRETRAIN = (
    """
schema = 1
name = "exact"
[[stage]]
name = "base"
kind = "pretrain"
data = "{shards}"
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
attention_dropout = 0.1
"""
    + TRAINING
)
FINETUNE = (
    """
schema = 1
name = "exact"
[[stage]]
name = "tuned"
kind = "finetune"
model = "{base}"
data = "{questions}"
r = 4
lora_alpha = 8.0
lora_dropout = 0.1
"""
    + TRAINING
)


@dataclass(frozen=True)
class Whole:
    """The data of both kinds, and one uninterrupted run of each that is asked for."""

    folder: Path
    places: dict[str, str]
    runs: dict[str, RunDir]

    def recipe(self, kind: str) -> tuple[str, str]:
        """The kind's recipe and stage name."""
        if kind == "pretrain":
            return PRETRAIN.format(**self.places), "base"
        return FINETUNE.format(**self.places), "tuned"

    def run(self, kind: str) -> RunDir:
        """The kind's uninterrupted run."""
        if kind not in self.runs:
            self.runs[kind] = launch_text(self.recipe(kind)[0], self.folder)
            assert wait_for_end(self.runs[kind]) == "succeeded"
        return self.runs[kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    data = launch_text(DATA, folder)
    assert wait_for_end(data) == "succeeded"
    found = Whole(folder, {name: str(data.out(name)) for name in ("shards", "questions")}, {})
    found.places["base"] = str(found.run("pretrain").out("base"))
    return found


def _losses(run: RunDir, stage: str) -> list[tuple[int, str]]:
    """Every step of the run's lineage with its loss, bit for bit."""
    series = state(run).series(stage, "loss")
    return [(int(x), float(y).hex()) for x, y in zip(series.x, series.y, strict=True)]


def _weights(run: RunDir, stage: str) -> str:
    names = ("model.safetensors", "adapter_model.safetensors")
    file = next(path for name in names if (path := run.out(stage) / name).exists())
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _to_be_killed(patch: pytest.MonkeyPatch, how: str, attempt: int, step: int) -> None:
    """Let the next engine die by SIGKILL at a step: a test that waited for it might be later than the last step."""
    patch.setenv("COCKPIT_TEST_FAULTS", json.dumps({how: {"step": step, "attempt": attempt}}))


@pytest.mark.parametrize("kind", ["pretrain", pytest.param("finetune", marks=pytest.mark.thorough)])
def test_a_run_killed_three_times_has_the_losses_and_weights_of_one_that_was_not(
    kind: str, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text, stage), reference = whole.recipe(kind), whole.run(kind)
    # A save is written beside the steps after it, and whole before the next one begins: step 23 has one of step 10.
    _to_be_killed(monkeypatch, "exit_at_step", 1, 23)
    run = launch_text(text, tmp_path)
    assert wait_for_end(run) == "failed"
    _to_be_killed(monkeypatch, "kill_during_save", 2, 30)
    resume(run)
    assert wait_for_end(run) == "failed"
    assert not (run.checkpoints(stage, 2) / "step-30").exists()
    _to_be_killed(monkeypatch, "exit_at_step", 3, 41)
    resume(run)
    assert wait_for_end(run) == "failed"
    resume(run)
    assert wait_for_end(run) == "succeeded"
    origins = [e.resumed_from for e in events(run) if isinstance(e, AttemptStarted)]
    assert origins[0] is None
    assert all(origin is not None for origin in origins[1:])
    assert len(origins) == 4
    assert [e.detail.partition(",")[0] for e in events(run) if isinstance(e, AttemptEnded) and e.exit] == [
        "killed by SIGKILL"
    ] * 3
    assert _losses(run, stage) == _losses(reference, stage)
    assert _weights(run, stage) == _weights(reference, stage)


@pytest.mark.parametrize("kind", [pytest.param("pretrain", marks=pytest.mark.thorough), "finetune"])
@pytest.mark.parametrize("save_total_limit", [1, pytest.param(3, marks=pytest.mark.thorough)])
def test_a_nan_loss_is_refused_before_the_optimizer_and_the_retry_starts_from_the_last_healthy_checkpoint(
    kind: str, save_total_limit: int, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = whole.recipe(kind)
    text = text.replace("max_steps = 60", "max_steps = 14").replace(
        "save_steps = 10", f"save_steps = 5\nsave_total_limit = {save_total_limit}"
    )
    text = text.replace("eval_steps = 30", "") + "[stage.retry]\nmax_attempts = 2\n"
    monkeypatch.setenv("COCKPIT_TEST_FAULTS", json.dumps({"nan_loss": {"step": 8, "micro_batch": 2}}))
    run = launch_text(text, tmp_path)
    assert wait_for_end(run) == "succeeded"
    recorded = events(run)
    trips = [e for e in recorded if isinstance(e, GuardTripped)]
    assert [(e.guard, e.step, e.attempt) for e in trips] == [("nonfinite_loss", 8, 1)]
    refused = [e for e in recorded if isinstance(e, Step) and e.attempt == 1 and e.step == 8]
    assert len(refused) == 1
    assert refused[0].loss is not None
    assert math.isnan(refused[0].loss)
    assert b'"loss":"NaN"' in run.journal.read_bytes()
    origin = [e.resumed_from for e in recorded if isinstance(e, AttemptStarted)][1]
    assert origin is not None
    assert (origin.attempt, origin.step) == (1, 5)
    scales = [e.learning_rate_scale for e in recorded if isinstance(e, AttemptStarted)]
    assert scales == [1.0, 0.5]
    assert all(e.healthy for e in recorded if isinstance(e, CheckpointCommitted))
