"""Models and adapters of other programs: what cannot be trained is refused in one line, not trained wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.events.writers import Warned
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneStage
from tests.engines.training.attempts import context, of_kind, run_stage
from tests.engines.training.tiny import FINETUNE, write_tokenizer

pytestmark = pytest.mark.torch
SIZES: dict[str, Any] = {
    "vocab_size": 261, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
STAGE = {**FINETUNE, "max_steps": 1, "model": "m", "data": "d", "target_modules": ["all-linear"]}


def saved(folder: Path, family: str, kind: str, **more: Any) -> Path:
    import transformers

    write_tokenizer(folder)
    getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**{**SIZES, **more})).save_pretrained(folder)
    return folder


def refusal(tmp_path: Path, inputs: dict[str, Path | str], **change: Any) -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        run_stage(context(tmp_path / "run", {**STAGE, **change}, inputs))
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_classifier_is_refused_whose_head_would_be_random(tmp_path: Path, messages: Path) -> None:
    model = saved(tmp_path / "m", "Llama", "LlamaForSequenceClassification")
    error = refusal(tmp_path, {"model": model, "data": messages})
    assert str(error) == f"model — {model} is not a whole causal language model: no file has lm_head.weight"


def test_an_encoder_is_refused_that_would_see_the_answer(tmp_path: Path, messages: Path) -> None:
    model = saved(tmp_path / "m", "Bert", "BertForMaskedLM")
    assert "a later token changes the logits of earlier ones" in str(
        refusal(tmp_path, {"model": model, "data": messages})
    )


def test_layers_that_peft_refuses_are_named_in_one_line(tmp_path: Path, messages: Path) -> None:
    model = saved(tmp_path / "m", "Mamba", "MambaForCausalLM", state_size=4)
    error = refusal(tmp_path, {"model": model, "data": messages})
    assert str(error).startswith("target_modules — PEFT cannot adapt these layers:")
    assert "in_proj" in error.hint


def test_weights_of_other_shapes_than_the_settings_are_refused(tmp_path: Path, model: Path, messages: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    error = str(refusal(tmp_path, {"model": tmp_path / "m", "data": messages}))
    assert "have other shapes than its config.json says: model.layers.0.mlp.down_proj.weight is [" in error


def test_weights_that_are_cut_off_are_refused(tmp_path: Path, model: Path, messages: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "cannot load a model from" in str(refusal(tmp_path, {"model": tmp_path / "m", "data": messages}))


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    """An adapter that another program trained over the model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "adapter"
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def changed(folder: Path, **change: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    return folder


def started(tmp_path: Path, model: Path, messages: Path, start: Path, **change: Any) -> OperatorError:
    return refusal(tmp_path, {"model": model, "data": messages, "start_from": start}, **change)


def test_what_is_no_lora_adapter_is_no_start(tmp_path: Path, model: Path, messages: Path, adapter: Path) -> None:
    error = started(tmp_path / "a", model, messages, model)
    assert "has no adapter_config.json, and this stage trains an adapter" in str(error)
    whole = {key: STAGE[key] for key in ("name", "kind", "model", "data", "max_length")}
    inputs: dict[str, Path | str] = {"model": model, "data": messages, "start_from": adapter}
    all_weights = context(tmp_path / "b", {**whole, "output": "model"}, inputs)
    with pytest.raises(OperatorError, match="is an adapter, and this stage trains all weights of a model"):
        run_stage(all_weights)
    error = started(tmp_path / "c", model, messages, changed(adapter, peft_type="IA3"))
    assert "is an adapter of another kind; got IA3; allowed: LORA" in str(error)


def test_an_adapter_with_other_scales_for_some_layers_is_refused(
    tmp_path: Path, model: Path, messages: Path, adapter: Path
) -> None:
    error = started(tmp_path, model, messages, changed(adapter, alpha_pattern={"q_proj": 2}))
    assert "alpha_pattern is {'q_proj': 2}, not {}" in str(error)


def test_a_checkpoint_of_another_program_says_how_its_weights_are_used(
    tmp_path: Path, model: Path, messages: Path, adapter: Path
) -> None:
    (adapter / "trainer_state.json").write_text('{"global_step": 10}')
    error = started(tmp_path, model, messages, adapter)
    assert "is a checkpoint of another program" in str(error)
    assert "name a copy without trainer_state.json" in error.hint


@pytest.mark.parametrize("named", [None, "org/another"])
def test_an_adapter_that_names_another_base_is_a_warning(
    named: str | None, tmp_path: Path, model: Path, messages: Path, adapter: Path
) -> None:
    start = adapter if named is None else changed(adapter, base_model_name_or_path=named)
    ctx = context(tmp_path / "run", STAGE, {"model": model, "data": messages, "start_from": start})
    assert run_stage(ctx) is not None
    said = [event.message for event in of_kind(ctx, Warned) if "as its base model" in event.message]
    assert len(said) == (0 if named is None else 1)


def test_a_layer_is_trained_as_a_whole_or_gets_an_adapter() -> None:
    stage = {**STAGE, "target_modules": ["q_proj", "v_proj"]}
    FinetuneStage.model_validate({**stage, "modules_to_save": ["lm_head"]})
    with pytest.raises(ValueError, match=r"modules_to_save — a layer is trained as a whole.* got v_proj"):
        FinetuneStage.model_validate({**stage, "modules_to_save": ["v_proj"]})


def test_whole_numbers_without_a_scale_are_no_weights(tmp_path: Path, model: Path, messages: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from cockpit.planning.base_check import check_base
    from engines.evaluate.model import load_model
    from recipes.stages.finetune import FinetuneStage

    folder = tmp_path / "int8"
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    rounded = {name: tensor.to(torch.int8) if "q_proj" in name else tensor for name, tensor in tensors.items()}
    save_file(rounded, folder / "model.safetensors", {"format": "pt"})
    says = r"has weights that are whole numbers without a scale \(model\.layers\.0\.self_attn\.q_proj\.weight: I8\)"
    with pytest.raises(OperatorError, match=says):
        run_stage(context(tmp_path / "run", FINETUNE, {"model": folder, "data": messages}))
    with pytest.raises(OperatorError, match=says):
        load_model(folder, "x")
    with pytest.raises(OperatorError, match=says):
        check_base(folder, FinetuneStage.model_validate(FINETUNE))
