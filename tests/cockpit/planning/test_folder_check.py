"""Folders of models and adapters are examined before a run is made, in a child process without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cockpit.launching.launch import launch, launch_text
from cockpit.planning.model_check import check_folders, check_models
from recipes.load import load_recipe
from recipes.problems import OperatorError, RecipeError
from tests.cockpit.command_line import CommandLine

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 64, "vocab_size": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


def recipe(tmp_path: Path, *stages: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text('schema = 1\nname = "x"\n' + "".join(f"[[stage]]\n{stage}" for stage in stages))
    return path


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_folders_without_weights_and_adapters_without_files_are_all_named_and_no_run_is_made(tmp_path: Path) -> None:
    model(tmp_path / "model")
    (tmp_path / "adapter").mkdir()
    path = recipe(
        tmp_path,
        'name = "gguf"\nkind = "export"\nmodel = "./model"\n',
        'name = "merged"\nkind = "merge"\nmodel = "./model"\nadapter = "./adapter"\n',
    )
    with pytest.raises(RecipeError) as caught:
        launch(path, runs_root=tmp_path / "runs")
    found = [(problem.line, problem.key) for problem in caught.value.problems]
    assert found == [(6, "gguf.model"), (10, "merged.model"), (11, "merged.adapter")]
    assert "has no model.safetensors" in str(caught.value.problems[0])
    assert not (tmp_path / "runs").exists()
    done = CommandLine(tmp_path).run("check", str(path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 3)


def test_the_examination_imports_no_torch(tmp_path: Path) -> None:
    jobs = [{"model": str(model(tmp_path / "model")), "adapters": {"adapter": str(tmp_path)}, "writes": True}]
    code = (
        "import sys; from exporters.stages.folder_check import main; "
        f"main(['', {json.dumps(jobs)!r}]); print(sorted({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(done.stdout.splitlines()) == 3


def cached(home: Path, hub_id: str, commits: dict[str, str]) -> Path:
    """A model in a hub cache: its revisions by name, each with a commit."""
    folder = home / f"models--{hub_id.replace('/', '--')}"
    for revision, commit in commits.items():
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_an_adapter_of_another_revision_of_its_base_is_refused_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    home = cached(tmp_path / "hub", "org/base", {"main": "a" * 40, "v2": "b" * 40})
    (tmp_path / "adapter").mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "revision": "v2", "r": 2, "lora_alpha": 2}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    path = recipe(
        tmp_path,
        f'name = "m"\nkind = "merge"\nmodel = "{home / "snapshots" / ("a" * 40)}"\nadapter = "./adapter"\n',
    )
    with pytest.raises(RecipeError, match=r"revision v2 \(bbbbbbbbbbbb\) of org/base, but the base model is"):
        check_folders(load_recipe(path))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("org/none", "no model org/none in the local hub cache, and engines do not use the network"),
        ("models/tiny", "there is no path {here}/models/tiny, and no model models/tiny in the local hub cache"),
        ("models/real", "models/real reads as a hub id, but is a path here; write ./models/real"),
        ("some/model.gguf", "there is no path {here}/some/model.gguf"),
    ],
)
def test_a_wrong_path_is_a_wrong_path_and_a_hub_id_must_be_in_the_cache(
    wanted: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "models" / "real").mkdir(parents=True)
    path = recipe(tmp_path, f'name = "gguf"\nkind = "export"\nmodel = "{wanted}"\n')
    with pytest.raises(RecipeError) as caught:
        check_models(load_recipe(path))
    assert caught.value.problems[0].line == 6
    assert message.format(here=tmp_path) in str(caught.value)


def test_a_model_of_the_cache_is_checked_as_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    home = cached(tmp_path / "hub", "org/base", {"main": "a" * 40})
    path = recipe(tmp_path, 'name = "gguf"\nkind = "export"\nmodel = "org/base"\n')
    check_models(load_recipe(path))
    (home / "snapshots" / ("a" * 40) / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": 7}))
    with pytest.raises(RecipeError, match="rms_norm_eps — got 7"):
        check_models(load_recipe(path))


def test_a_pinned_revision_is_read_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    home = cached(tmp_path / "hub", "org/base", {"main": "a" * 40, "v2": "b" * 40})
    (home / "snapshots" / ("a" * 40) / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": 7}))
    for revision in ("b" * 40, "v2"):
        text = f'name = "gguf"\nkind = "export"\nmodel = "org/base@{revision}"\n'
        check_models(load_recipe(recipe(tmp_path, text)))
    for revision in ("a" * 40, "main"):
        text = f'name = "gguf"\nkind = "export"\nmodel = "org/base@{revision}"\n'
        with pytest.raises(RecipeError, match="rms_norm_eps — got 7"):
            check_models(load_recipe(recipe(tmp_path, text)))
    text = f'name = "gguf"\nkind = "export"\nmodel = "org/base@{"c" * 40}"\n'
    with pytest.raises(RecipeError, match=f"download it first: cockpit pull org/base@{'c' * 40}"):
        check_models(load_recipe(recipe(tmp_path, text)))


def test_a_command_on_a_file_says_what_takes_files(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    line = CommandLine(tmp_path)
    done = line.run("export", str(tmp_path / "model.gguf"))
    assert done.returncode == 2
    assert "is a file" in done.stderr
    assert "cockpit quantize FILE" in done.stderr
    missing = line.run("export", "nofile.gguf")
    assert (missing.returncode, "no folder nofile.gguf" in missing.stderr) == (2, True)


def test_a_recipe_without_a_file_is_refused_in_the_same_words(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    text = f'schema = 1\nname = "x"\n[[stage]]\nname = "gguf"\nkind = "export"\nmodel = "{folder}"\n'
    with pytest.raises(OperatorError, match=r"gguf\.model — .* has no model\.safetensors"):
        launch_text(text, runs_root=tmp_path / "runs", folder=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_an_adapter_that_cannot_be_merged_is_named_before_a_run_is_made(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    for setting, words in (("corda", "path_initial_model_for_weight_conversion"), (True, "is missing")):
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": setting}
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
        path = recipe(tmp_path, 'name = "m"\nkind = "merge"\nmodel = "."\nadapter = "./adapter"\n')
        with pytest.raises(RecipeError) as caught:
            check_folders(load_recipe(path))
        (problem,) = [problem for problem in caught.value.problems if problem.key == "m.adapter"]
        assert words in f"{problem.message} {problem.hint}"
