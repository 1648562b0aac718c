"""The demo recipe, reduced by `--set`: the same ten stages and proofs, on less text and fewer steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.runs.reader import read_now
from engines.artifacts.manifest import verify_manifest
from engines.events.machine import MachineSampled
from engines.events.results import SampledText
from recipes.stages.gates import unreported
from recipes.stages.registry import tag_of_table
from tests.runs.harness import ROOT, events, run_to_success

pytestmark = [pytest.mark.torch, pytest.mark.slow]
SHRUNK = (
    "corpus.max_bytes=1200000",
    "tokenizer.vocab_size=1024",
    "questions.max_examples=600",
    "base.max_steps=150",
    "base.max_length=128",
    "base.save_steps=75",
    "base.eval_steps=75",
    "base.sample_steps=75",
    "tuned.max_steps=90",
    "tuned.max_length=128",
    "before.max_tokens=2000",
    "after.max_tokens=2000",
    "gguf.max_length=128",
)

COSTS = {"wall_s", "cpu_s", "peak_rss_bytes"}
"""The end of every attempt adds them, after its gates."""


@pytest.mark.thorough
def test_the_demo_goes_from_source_text_to_quantized_files_that_are_proven_to_be_the_model(tmp_path: Path) -> None:
    run, printed = run_to_success(ROOT / "recipes" / "demo.toml", tmp_path / "runs", *SHRUNK)
    state = read_now(run).state
    assert [stage.state for stage in state.stages] == ["succeeded"] * 10
    for stage in state.stages:
        assert verify_manifest(run.out(stage.name)) == []
        assert stage.name in printed, "the table has every stage"

    metrics = {stage.name: stage.metrics for stage in state.stages}
    for table in json.loads(run.recipe_json.read_text())["recipe"]["stage"]:
        gates = [{"metric": name, "op": "<", "value": 1.0} for name in metrics[table["name"]] if name not in COSTS]
        assert unreported(str(tag_of_table(table)), {**table, "gate": gates}) == [], "the kind's row has every metric"
    before, after = metrics["before"]["loss"], metrics["after"]["loss"]
    assert before is not None
    assert after is not None
    assert after <= 0.9 * before, "answer-token loss on held-out files falls by at least a tenth"

    parity = json.loads((run.out("gguf") / "parity.json").read_text())
    assert parity
    for name, limit in (("f16_mean_kl", 1e-6), ("q8_0_mean_kl", 1e-4)):
        value = metrics["gguf"][name]
        assert value is not None
        assert value < limit, name
    assert metrics["gguf"]["q4_k_m_mean_kl"] is not None

    recorded = events(run)
    assert sum(isinstance(e, SampledText) and e.stage in {"before", "after"} for e in recorded) == 6
    assert any(isinstance(e, MachineSampled) and e.engine_rss_bytes for e in recorded)
