"""An evaluate stage asks the files of an export alone, and with each of its adapters over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cockpit.shipping.evaluations import Place, choose
from engines.chatting.gguf_talk import GgufTalk
from engines.evaluate.gguf_files import gguf_models
from engines.evaluate.stage import run
from engines.evaluate.target import open_target
from engines.files import file_sha256
from engines.llama.gguf_file import read_gguf
from engines.shipping.evidence import Given, collect
from recipes.problems import OperatorError
from recipes.ship.limits import ShipLimits
from recipes.stages.registry import row_of
from tests.exporters.exporting import export
from tests.exporters.small_models import build_adapter, build_model, build_tokenizer
from tests.stage_context import TriedContext, make_context

pytestmark = pytest.mark.torch

STAGE = {
    "name": "judge", "kind": "evaluate", "model": "m", "data": "d", "max_new_tokens": 4, "max_length": 64, "threads": 1,
    "test_data": "d", "checks": ["normalized"], "files": "gguf", "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    base = build_model(
        folder / "base", build_tokenizer(folder / "tokenizer"), hidden_size=64, intermediate_size=64,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    adapters = {
        "atlas": build_adapter(folder / "atlas", base),
        "nexus": build_adapter(folder / "nexus", base, targets=("q_proj",)),
    }
    inputs = {f"adapters[{at}]": path for at, path in enumerate(adapters.values())}
    ctx, _ = export(
        folder / "export", base, "F16", "Q8_0", parity_positions=0, adapters=list(map(str, adapters.values())),
        inputs=inputs,
    )  # fmt: skip
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"What is {n}?", "completion": "One."}) + "\n" for n in range(3)))
    return {"base": base, "files": ctx.out, "data": data, **adapters}


def asked(tmp_path: Path, made: dict[str, Path], model: str) -> tuple[TriedContext, dict[str, float]]:
    inputs: dict[str, Any] = {"model": made[model], "data": made["data"], "test_data": made["data"]}
    ctx = make_context(tmp_path, STAGE, inputs={**inputs, "files": made["files"]})
    return ctx, dict(run(ctx).metrics)


def test_each_adapter_of_an_export_answers_over_each_file_and_has_its_own_metrics(
    tmp_path: Path, made: dict[str, Path]
) -> None:
    ctx, metrics = asked(tmp_path, made, "atlas")
    names = ["F16", "F16+atlas", "F16+nexus", "Q8_0", "Q8_0+atlas", "Q8_0+nexus"]
    assert sorted(one.name for one in gguf_models(ctx)) == names
    assert {file.name for file in ctx.out.glob("results-*.json")} == {f"results-{name}.json" for name in names}
    assert set(metrics) - {"tokens"} <= {*row_of(ctx.stage).metrics(ctx.stage)} | {
        f"{metric}.{name}" for metric in ("loss", "perplexity", *_of_tests(ctx)) for name in names
    }
    # The adapter over the F16 file is the adapter over its base model; the file alone and another adapter are not.
    assert metrics["loss.F16+atlas"] == pytest.approx(metrics["loss"], abs=2e-3)
    assert abs(metrics["loss.F16"] - metrics["loss"]) > 2e-3
    assert abs(metrics["loss.F16+nexus"] - metrics["loss"]) > 2e-3
    found = {name: json.loads((ctx.out / f"results-{name}.json").read_text()) for name in names}
    adapter = next(one.adapter for one in gguf_models(ctx) if one.name == "F16+atlas")
    assert adapter is not None
    assert found["F16+atlas"]["protocol"]["adapter"] == file_sha256(adapter)
    assert found["F16+atlas"]["model"] == f"{_file(made, 'F16').name} + {adapter.name}"
    assert not found["F16"]["protocol"]["adapter"]


def test_the_results_of_the_file_alone_are_those_that_ship_it(tmp_path: Path, made: dict[str, Path]) -> None:
    ctx, _ = asked(tmp_path, made, "base")
    places = [Place(file, "judge") for file in sorted(ctx.out.glob("results-*.json"))]
    evidence = collect(Given(str(_file(made, "F16")), [str(one.path) for one in places]))
    chosen = choose("task", evidence, places, "F16", ShipLimits())
    assert getattr(chosen, "place", None) == Place(ctx.out / "results-F16.json", "judge")


def test_an_export_of_adapters_alone_is_no_model(tmp_path: Path, made: dict[str, Path]) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in made["files"].glob("*.gguf"):
        if read_gguf(file).scalar("general.type", "") == "adapter":
            (alone / file.name).write_bytes(file.read_bytes())
    inputs: dict[str, Any] = {"model": made["base"], "data": made["data"], "test_data": made["data"], "files": alone}
    with pytest.raises(OperatorError, match="has no GGUF model"):
        gguf_models(make_context(tmp_path / "run", STAGE, inputs=inputs))


@pytest.mark.parametrize("opens", [open_target, GgufTalk])
def test_an_adapter_in_the_place_of_a_model_is_refused_with_what_to_do(opens: Any, made: dict[str, Path]) -> None:
    model, adapter = _file(made, "F16"), next(made["files"].glob("*atlas*.gguf"))

    def tried(file: Path, over: Path | None) -> None:
        if opens is GgufTalk:
            GgufTalk(file, threads=1, adapter=over)
        else:
            open_target(str(file), over, lambda _text: None)

    with pytest.raises(OperatorError, match="is an adapter, and no model") as error:
        tried(adapter, None)
    assert f"--adapter {adapter}" in str(error.value.hint)
    with pytest.raises(OperatorError, match=r"--adapter — .* is a model, and no adapter"):
        tried(model, model)


def _of_tests(ctx: TriedContext) -> list[str]:
    return list(json.loads((ctx.out / "results-F16.json").read_text())["metrics"])


def _file(made: dict[str, Path], kind: str) -> Path:
    return next(file for file in made["files"].glob(f"*-{kind}.gguf"))
