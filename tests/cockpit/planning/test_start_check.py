"""What a training starts from is compared with the stage before a run: kind, rank, scale, layers and base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cockpit.planning.base_check import start_problems
from engines.artifacts.manifest import manifest_sha256, write_manifest
from recipes.load import load_recipe_text

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}


def problems(folder: Path, fields: str, config: dict[str, Any] | None = CONFIG, first: str = "", **files: Any) -> str:
    """The problems of a stage that starts from a folder with these settings, or from the stage `first`."""
    start = folder / "start"
    start.mkdir()
    for place in ("model", "rows"):
        (folder / place).mkdir(exist_ok=True)
    if config is not None:
        (start / "adapter_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (start / f"{name}.json").write_text(json.dumps(content))
    named = "first" if first else "./start"
    text = f'schema = 1\nname = "x"\n{first}\n[[stage]]\nname = "more"\nkind = "finetune"\nmodel = "./model"\n'
    text += f'data = "./rows"\nstart_from = "{named}"\n{fields}\n'
    found = start_problems(load_recipe_text(text, folder / "r.toml"))
    assert all(problem.key == "more.start_from" and problem.hint for problem in found)
    return "\n".join(problem.message for problem in found)


FITS = 'target_modules = ["q_proj", "v_proj"]'


@pytest.mark.parametrize(
    "fields", [FITS, 'target_modules = ["v_proj", "self_attn.q_proj"]', 'target_modules = ["all-linear"]']
)
def test_an_adapter_of_the_same_shapes_is_no_problem(fields: str, tmp_path: Path) -> None:
    assert problems(tmp_path, fields) == ""


@pytest.mark.parametrize(
    ("fields", "config", "words"),
    [
        (f"{FITS}\nr = 8", CONFIG, "the adapter does not fit: r is 16, not 8"),
        (f"{FITS}\nlora_alpha = 8", CONFIG, "lora_alpha is 32, not 8.0"),
        (FITS, {**CONFIG, "use_dora": True}, "use_dora is"),
        (f"{FITS}\nuse_dora = true", CONFIG, "use_dora is false, not true"),
        (FITS, {**CONFIG, "modules_to_save": ["embed_tokens"]}, "modules_to_save is embed_tokens, not empty"),
        (f'{FITS}\nmodules_to_save = ["lm_head"]', {**CONFIG, "modules_to_save": None}, "is empty, not lm_head"),
        (FITS, {**CONFIG, "bias": "lora_only"}, 'bias is "lora_only", not "none"'),
        ("", CONFIG, "target_modules is q_proj, v_proj, not down_proj"),
        (FITS, {**CONFIG, "peft_type": "IA3"}, "an adapter of another kind"),
        (FITS, {**CONFIG, "alora_invocation_tokens": [1, 2]}, "is more than LoRA"),
        (FITS, {**CONFIG, "peft_version": "9.0", "a_newer_feature": {"x": 1}}, "a_newer_feature is"),
        (FITS, None, "is not an adapter, and this stage trains an adapter"),
        ('output = "model"', CONFIG, "is an adapter, and this stage trains all weights"),
    ],
)
def test_a_misfit_is_said_before_a_run(fields: str, config: dict[str, Any] | None, words: str, tmp_path: Path) -> None:
    assert words in problems(tmp_path, fields, config)


def test_a_setting_of_a_newer_version_that_is_off_is_no_problem(tmp_path: Path) -> None:
    off = {"peft_version": "9.0", "a_newer_feature": False, "another": None, "a_list": []}
    assert problems(tmp_path, FITS, {**CONFIG, **off}) == ""


def test_a_stage_that_starts_from_another_stage_is_compared_with_it(tmp_path: Path) -> None:
    first = '[[stage]]\nname = "first"\nkind = "finetune"\nmodel = "./model"\ndata = "./rows"\nr = 4'
    assert "r is 4, not 16" in problems(tmp_path, "", first=first)


def test_an_adapter_of_another_base_is_said(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    write_manifest(model)
    same = {"path": str(model), "manifest_sha256": manifest_sha256(model), "method": "manifest"}
    assert problems(tmp_path, FITS, base=same) == ""
    other = tmp_path / "again"
    other.mkdir()
    (other / "model").symlink_to(model)
    assert "an adapter of another base model" in problems(other, FITS, base={**same, "manifest_sha256": "0" * 64})
