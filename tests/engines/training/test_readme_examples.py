"""The README's examples of data, from the recipe on its page to an adapter; the first runs in `tests/runs`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engines.data.stage import run as prepare
from engines.evaluate.stage import run as evaluate
from recipes.load import load_recipe
from tests.engines.small_corpora import write_tree
from tests.engines.training.attempts import run_stage
from tests.engines.training.tiny import write_model
from tests.stage_context import TriedContext, make_context

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "README.md").read_text()
EXAMPLES = {
    found[1]: found[0] for found in re.findall(r'```toml\n(schema = 1\nname = "(.*?)"\n.*?)```', PAGE, re.DOTALL)
}
SMALL = {"max_length": 64, "per_device_train_batch_size": 4, "max_steps": 6, "save_steps": 6}
"""A small model's share of the fields that the page leaves at their defaults."""


def run_example(name: str, folder: Path) -> dict[str, tuple[TriedContext, dict[str, float]]]:
    """Run the stages of an example in their order; the context and the metrics of each."""
    recipe = folder / f"{name}.toml"
    recipe.write_text(EXAMPLES[name])
    loaded = load_recipe(recipe)
    tables: dict[str, dict[str, Any]] = {table["name"]: table for table in loaded.resolved["stage"]}
    done: dict[str, tuple[TriedContext, dict[str, float]]] = {}
    for stage in loaded.graph.order:
        table = tables[stage]
        if table["kind"] == "finetune":
            table |= SMALL
        inputs: dict[str, Path | str] = {
            field: reference.path or done[reference.name][0].out
            for field, reference in loaded.graph.inputs[stage].items()
        }
        ctx = make_context(folder / "runs" / stage, table, inputs=inputs)
        result = {"prepare": prepare, "finetune": run_stage, "evaluate": evaluate}[table["kind"]](ctx)
        assert result is not None
        done[stage] = ctx, result.metrics
    return done


def test_the_page_has_three_examples() -> None:
    assert list(EXAMPLES) == ["mine", "interactions", "texts"]


def test_rows_of_any_form_are_divided_trained_on_and_asked(tmp_path: Path) -> None:
    rows = [
        {"task": {"description": f"What is {n} plus one?"}, "execution": {"output": f"It is {n + 1}."}}
        for n in range(40)
    ]
    write_tree(tmp_path / "interactions", {f"{n:03}.json": json.dumps(row) for n, row in enumerate(rows)})
    write_model(tmp_path / "my-model")
    done = run_example("interactions", tmp_path)
    assert (done["tuned"][0].out / "adapter_model.safetensors").is_file()
    assert done["tuned"][1]["examples"] == 32
    report = json.loads((done["after"][0].out / "report.json").read_text())
    assert len(report["answers"]) == 3


def test_texts_are_trained_on_in_every_token(tmp_path: Path) -> None:
    files = {"a.txt": "".join(f"Line {n} of a book.\n" for n in range(300)), "b.html": "<p>One page.</p>"}
    write_tree(tmp_path / "library", {**files, "c.jsonl": '{"text": "one row"}\n{"text": "another row"}\n'})
    write_model(tmp_path / "my-model")
    done = run_example("texts", tmp_path)
    assert done["library"][1]["divided"] == 1
    assert (done["tuned"][0].out / "adapter_model.safetensors").is_file()
    assert done["tuned"][1]["refused_rows"] == 0
    assert done["tuned"][1]["scored_tokens"] > 2000
