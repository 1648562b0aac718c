"""Preparing resume, merge and quantize, without a screen."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from cockpit.one_stage.fits import why_no_export, why_no_merge, why_no_resume
from cockpit.one_stage.from_run import export_recipe, merge_recipe
from cockpit.one_stage.from_words import export_text
from cockpit.one_stage.origins import base_of, held_out_data
from cockpit.one_stage.recipe import Input, short_name
from cockpit.one_stage.sources import Source, checkpoint_rows, sources
from cockpit.planning.models import export_need, file_plans, merge_need, model_facts
from cockpit.runs.reader import read_now
from cockpit.schedule.resolved_recipe import InputRef, RunRecipe, manifest_hash
from cockpit.tui.dialogs.make import plan_words
from engines.run_dir.paths import RunDir
from engines.words import RunStatus
from recipes.load import load_recipe_text
from recipes.stages.export import ExportStage
from recipes.stages.merge import MergeStage
from tests.tui.made_runs import make_run


def _adapter_run(root: Path, base: Path) -> RunDir:
    run = make_run(root, kind="finetune")
    spec = {"inputs": {"model": {"origin": "path", "name": "base", "path": str(base), "manifest_sha256": "b" * 64}}}
    run.stage_json("train", 1).write_text(json.dumps(spec))
    return run


def _safetensors(folder: Path, rows: int, columns: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    size = rows * columns * 2
    tensor = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {}, "w": tensor}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * size)


def test_removed_checkpoints_are_listed_and_cannot_be_used(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rows = checkpoint_rows(read_now(run).state.stages)
    assert [(row.checkpoint.step, row.removed) for row in rows] == [(40, False), (30, False), (20, False), (10, True)]
    assert [row.best for row in rows] == [True, False, False, False]
    assert "removed" in why_no_resume(RunStatus.STOPPED, rows[-1], rows)
    assert why_no_resume(RunStatus.STOPPED, rows[1], rows) == ""


def test_a_live_run_offers_nothing_and_gives_the_reason(tmp_path: Path) -> None:
    rows = checkpoint_rows(read_now(make_run(tmp_path, state=None)).state.stages)
    for state in (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED):
        assert "live" in why_no_resume(state, rows[0], rows)
        assert "live" in why_no_merge(state, None)
        assert "live" in why_no_export(state, None)


def test_a_finished_run_needs_a_checkpoint_to_go_back_to() -> None:
    assert why_no_resume(RunStatus.SUCCEEDED, None)
    assert not why_no_resume(RunStatus.FAILED, None)


def test_a_merge_is_a_sound_recipe_of_one_stage_with_inputs_by_path_and_hash(tmp_path: Path) -> None:
    base = tmp_path / 'base "x" [/bold]'
    _safetensors(base, 4, 8)
    run = _adapter_run(tmp_path / "runs", base)
    found = sources(run, read_now(run).state.stages)
    assert [(source.kind, source.step) for source in found] == [
        ("adapter", None),
        ("adapter", 40),
        ("adapter", 30),
        ("adapter", 20),
    ]
    for source in found[:2]:
        of = base_of(run, source)
        assert of is not None
        made = merge_recipe(run, "atlas", source, of, "bfloat16")
        recipe = load_recipe_text(made.text, run.root / "recipe.toml").recipe
        (stage,) = recipe.stage
        assert isinstance(stage, MergeStage)
        assert (stage.model, stage.adapter) == (str(base), str(source.path))
        assert made.parent == run.id
        assert source.manifest_sha256 in made.text
        assert "b" * 64 in made.text


def test_an_export_is_a_sound_recipe_of_one_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", kind="pretrain")
    source = sources(run, read_now(run).state.stages)[0]
    made = export_recipe(run, "atlas-merged", source, ["F16", "Q8_0"])
    recipe = load_recipe_text(made.text, run.root / "recipe.toml").recipe
    (stage,) = recipe.stage
    assert isinstance(stage, ExportStage)
    assert stage.file_types == ["F16", "Q8_0"]
    assert recipe.name == "atlas-gguf"


def test_names_made_by_buttons_are_names_whatever_the_recipe_was_called() -> None:
    for name in ("x" * 60, "A b/c", "", "merged", "-merged", "\x1b[2J"):
        made = short_name(name, "gguf")
        load_recipe_text(f'schema = 1\nname = "{made}"\n[[stage]]\nname = "a"\nkind = "fake"\n', Path("x.toml"))


def test_a_merge_without_its_base_is_refused_with_the_reason(tmp_path: Path) -> None:
    run = _adapter_run(tmp_path / "runs", tmp_path / "gone")
    source = sources(run, read_now(run).state.stages)[0]
    assert "does not exist" in why_no_merge(RunStatus.SUCCEEDED, source, base_of(run, source))
    assert "does not name its base model" in why_no_merge(RunStatus.SUCCEEDED, source, None)


def test_sizes_come_from_headers_and_damaged_ones_are_not_known(tmp_path: Path) -> None:
    _safetensors(tmp_path / "m", 64, 128)
    facts = model_facts(tmp_path / "m")
    assert facts is not None
    assert facts.parameters == 64 * 128
    need = export_need(tmp_path, tmp_path / "m", ["Q8_0"])
    assert need.disk_bytes == 64 * 128 * 8.5 / 8
    assert merge_need(tmp_path, tmp_path / "m", "float32").disk_bytes == 64 * 128 * 4
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\xff" * 64)
    assert model_facts(tmp_path / "m") is None
    assert export_need(tmp_path, tmp_path / "m", ["Q8_0"]).disk_bytes is None


LEARNED = """
schema = 1
name = "atlas"
[[stage]]
name = "train"
kind = "pretrain"
data = "/nowhere"
hidden_size = 256
intermediate_size = 768
num_hidden_layers = 1
num_attention_heads = 4
num_key_value_heads = 2
[[stage]]
name = "questions"
kind = "prepare"
output = "messages"
data = "/nowhere"
[[stage]]
name = "tuned"
kind = "finetune"
model = "train"
data = "questions"
[[stage]]
name = "merged"
kind = "merge"
model = "train"
adapter = "tuned"
"""


def test_an_export_is_compared_on_the_last_training_data_of_its_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", kind="pretrain")
    gone = tmp_path / "gone"
    gone.mkdir()
    recipe = load_recipe_text(LEARNED.replace("/nowhere", str(gone)), run.root / "recipe.toml").recipe
    gone.rmdir()
    stage = {name: InputRef("stage", name, None) for name in ("train", "questions", "tuned")}
    inputs = {
        "train": {"data": InputRef("path", str(gone), str(gone))},
        "tuned": {"model": stage["train"], "data": stage["questions"]},
        "merged": {"model": stage["train"], "adapter": stage["tuned"]},
    }
    plan = RunRecipe(recipe, ["train", "questions", "tuned", "merged"], inputs, [])
    run.recipe_json.write_text(json.dumps(plan.to_json()))
    assert held_out_data(run, "merged") is None, "its folder is gone"
    run.out("questions").mkdir(parents=True)
    assert held_out_data(run, "train") is None
    assert held_out_data(run, "merged") == Input.at(run.out("questions"), manifest_hash(run.out("questions")))
    run.out("merged").mkdir(parents=True)
    source = Source("model", "merged", run.out("merged"), "c" * 64)
    made = export_recipe(run, "atlas", source, ["F16"])
    (export,) = load_recipe_text(made.text, run.root / "recipe.toml").recipe.stage
    assert isinstance(export, ExportStage)
    assert export.data == str(run.out("questions"))


def test_data_that_an_operator_names_takes_the_place_of_the_runs_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", kind="pretrain")
    learned, other = tmp_path / "learned", tmp_path / "other"
    learned.mkdir()
    other.mkdir()
    recipe = load_recipe_text(LEARNED.replace("/nowhere", str(learned)), run.root / "recipe.toml").recipe
    plan = RunRecipe(recipe, ["train"], {"train": {"data": InputRef("path", str(learned), str(learned))}}, [])
    run.recipe_json.write_text(json.dumps(plan.to_json()))
    for named, expected in ((None, learned), (str(other), other)):
        made = export_text(tmp_path / "runs", f"{run.id}:train", "F16", named)
        (stage,) = load_recipe_text(made.text, run.root / "recipe.toml").recipe.stage
        assert isinstance(stage, ExportStage)
        assert stage.data == str(expected)


def test_sizes_of_a_model_with_a_config_are_exact(tmp_path: Path) -> None:
    _safetensors(tmp_path / "m", 64, 128)
    config = {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 512,
    }
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    plan = file_plans(tmp_path / "m", ["F16", "Q4_K_M"])["Q4_K_M"]
    assert plan.fallbacks, "rows of 96 are no blocks of 256"
    assert export_need(tmp_path, tmp_path / "m", ["Q4_K_M"], parity=False).disk_bytes == plan.bytes
    need = export_need(tmp_path, tmp_path / "m", ["Q4_K_M"])
    assert need.disk_bytes == plan.bytes + (2048 + 256) * 512 * 4, "and the model's logits meanwhile"


def test_types_that_need_more_than_weights_say_so(tmp_path: Path) -> None:
    config = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 1, "vocab_size": 512}))
    words = {name: plan_words(plan) for name, plan in file_plans(tmp_path, ["IQ2_XS", "TQ2_0", "Q4_K_S"]).items()}
    assert words["IQ2_XS"].endswith("with importance matrix")
    assert words["TQ2_0"].endswith("ternary models only")
    assert words["Q4_K_S"].endswith("b/w")
    plan = file_plans(tmp_path, ["IQ2_XS"])["IQ2_XS"]
    assert next(c.type for c in plan.choices if c.shape.name == "blk.0.attn_v.weight") == "Q4_K", "four heads share one"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"vocab_size": "x"}', '{"num_hidden_layers": 1e300}', "[" * 100_000])
def test_without_shapes_in_the_config_sizes_come_from_the_headers(tmp_path: Path, text: str) -> None:
    _safetensors(tmp_path / "m", 64, 128)
    (tmp_path / "m" / "config.json").write_text(text)
    assert file_plans(tmp_path / "m", ["Q8_0"]) == {}
    assert export_need(tmp_path, tmp_path / "m", ["Q8_0"]).disk_bytes == 64 * 128 * 8.5 / 8


def test_an_adapter_of_a_run_that_was_moved_finds_its_base_where_it_is_now(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = _adapter_run(runs, runs / "other" / "stages" / "base" / "out")
    source = sources(run, read_now(run).state.stages)[0]
    (source.path / "base.json").write_text(json.dumps({"path": str(run.out("base")), "manifest_sha256": None}))
    for base in (runs / "other" / "stages" / "base" / "out", run.out("base")):
        base.mkdir(parents=True)
    moved = RunDir(runs.rename(tmp_path / "elsewhere") / run.id)
    source = sources(moved, read_now(moved).state.stages)[0]
    beside = base_of(moved, source)
    assert beside is not None
    assert beside.path == tmp_path / "elsewhere" / "other" / "stages" / "base" / "out"
    assert beside.text == str(beside.path)
    moved.stage_json("train", 1).unlink()
    own = base_of(moved, source)
    assert own is not None
    assert own.path == moved.out("base")
