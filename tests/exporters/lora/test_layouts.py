"""Adapters in every layout in which PEFT saves them: merged to the trained model, or refused with a way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporters.lora.adapter import read_adapter
from exporters.lora.merge import merge, open_merged
from recipes.problems import OperatorError
from tests.exporters import exporting
from tests.exporters.lora.adapting import EMBEDDING, HEAD, LINEAR, adapt, distance, ours, peft_weights
from tests.exporters.small_models import build_model, copy_folder, edit_json

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::UserWarning")]
TOKENS = [3, 5, 600]
Bases = Callable[..., Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Bases:
    made: dict[tuple[bool, str, str], Path] = {}

    def of(tied: bool, family: str = "Llama", dtype: str = "float32") -> Path:
        if (tied, family, dtype) not in made:
            made[tied, family, dtype] = build_model(
                tmp_path_factory.mktemp("base"), tokenizer, family=family, dtype=dtype, hidden_size=64,
                intermediate_size=96, num_hidden_layers=1, tie_word_embeddings=tied,
            )  # fmt: skip
        return made[tied, family, dtype]

    return of


def merged(base: Path, adapter: Path, out: Path, **options: Any) -> Path:
    out.mkdir(parents=True)
    merge(base, [(adapter, 1.0)], out, chunk_bytes=64 * 64 * 4, **options)
    return out


def answers(model: Any, ids: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(ids).logits


def difference(adapted: Any, folder: Path) -> float:
    """The largest difference of the answers of a live adapted model and a merged folder, by the largest answer."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 60)[None]
    wanted = answers(adapted, ids)
    found = answers(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), ids)
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def tensors(adapter: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(adapter / "adapter_model.safetensors"))


def store(adapter: Path, values: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(values, adapter / "adapter_model.safetensors", {"format": "pt"})


SAME_AS_PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "extended vocabulary, both saved": ("Llama", {"vocab": 644, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved and tied": ("Llama", {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}),
    "saved inner module": ("Llama", {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]}),
    "tokens": ("Llama", {"trainable_token_indices": TOKENS}),
    "tokens of an extended vocabulary": ("Llama", {"vocab": 644, "trainable_token_indices": [3, 641]}),
    "the same tokens of both": ("Llama", {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS}}),
    "bias of lora layers": ("Qwen2", {"bias": "lora_only", "target_modules": ["q_proj", "o_proj"]}),
    "every bias": ("Qwen2", {"bias": "all", "target_modules": ["q_proj", "o_proj"]}),
    "lora_bias": ("Qwen2", {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}),
    "both biases": ("Qwen2", {"lora_bias": True, "bias": "all", "use_rslora": True, "target_modules": ["q_proj"]}),
    "pissa": ("Llama", {"init_lora_weights": "pissa"}),
    "olora": ("Llama", {"init_lora_weights": "olora", "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 5}}),
    "mica": ("Llama", {"init_lora_weights": "mica"}),
    "orthogonal": ("Llama", {"init_lora_weights": "orthogonal"}),
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", SAME_AS_PEFT)
def test_the_merge_is_pefts_bit_for_bit_and_answers_as_the_adapter_did(
    kind: str, tied: bool, bases: Bases, tmp_path: Path
) -> None:
    family, settings = SAME_AS_PEFT[kind]
    base = bases(tied, family)
    adapted = adapt(tmp_path / "adapter", base, **settings)
    out = merged(base, tmp_path / "adapter", tmp_path / "out")
    assert difference(adapted, out) < 2e-5
    assert distance(ours(out), peft_weights(adapted)) == 0.0
    assert open_merged(base, [(tmp_path / "adapter", 1.0)]).warnings == []


BETTER_THAN_PEFT: dict[str, dict[str, Any]] = {
    "tied lora of the embedding": {"target_modules": [*LINEAR, "embed_tokens"], "ensure_weight_tying": True},
    "tied lora of the head": {"target_modules": [*LINEAR, "lm_head"], "ensure_weight_tying": True},
    "other tokens of the head": {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 7]}},
    "tokens of the head": {"trainable_token_indices": {"lm_head": [3, 7]}},
}


@pytest.mark.parametrize("kind", BETTER_THAN_PEFT)
def test_where_pefts_merge_is_another_model_the_merge_is_the_trained_one(
    kind: str, bases: Bases, tmp_path: Path
) -> None:
    import torch

    base = bases(True)
    adapted = adapt(tmp_path / "adapter", base, **BETTER_THAN_PEFT[kind])
    out = merged(base, tmp_path / "adapter", tmp_path / "out")
    assert difference(adapted, out) < 2e-5
    tied = json.loads((out / "config.json").read_text())["tie_word_embeddings"]
    assert tied == kind.startswith("tied")
    ids = torch.arange(3, 60)[None]
    before = answers(adapted, ids)
    after = answers(adapted.merge_and_unload(), ids)
    assert (after - before).abs().max() > 0.01 * before.abs().max(), "PEFT merges it: this kind belongs above"


def test_a_name_that_differs_only_by_the_state_before_training_is_ignored(bases: Bases, tmp_path: Path) -> None:
    adapt(tmp_path / "adapter", bases(True), **SAME_AS_PEFT["extended vocabulary, both saved"][1])
    names = tensors(tmp_path / "adapter")
    prefix = "base_model.model.lm_head"
    assert {f"{prefix}.weight", f"{prefix}.modules_to_save.weight", f"{prefix}.original_module.weight"} <= set(names)
    names[f"{prefix}.original_module.weight"] = names[f"{prefix}.original_module.weight"] + 1
    store(tmp_path / "adapter", names)
    assert read_adapter(tmp_path / "adapter").replacements[HEAD].name == f"{prefix}.weight"
    names[f"{prefix}.modules_to_save.weight"] = names[f"{prefix}.modules_to_save.weight"] + 1
    store(tmp_path / "adapter", names)
    with pytest.raises(OperatorError, match=r"lm_head\.modules_to_save\.weight .*with different values") as caught:
        read_adapter(tmp_path / "adapter")
    assert "save it again" in caught.value.hint


WRAPPED: dict[str, Callable[[str], str]] = {
    "compiled whole": lambda name: f"_orig_mod.{name}",
    "compiled base": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "compiled layers": lambda name: name.replace(".layers.0.", ".layers.0._orig_mod."),
    "sharded and checkpointed": lambda name: f"_fsdp_wrapped_module.{name}".replace(
        ".layers.0.", ".layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
    "data parallel": lambda name: f"module.{name}",
    "of a state dict": lambda name: name.replace("lora_A.weight", "lora_A.default.weight").replace(
        "lora_B.weight", "lora_B.default.weight"
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_names_of_wrappers_change_nothing(kind: str, bases: Bases, tmp_path: Path) -> None:
    base = bases(False)
    adapted = adapt(tmp_path / "adapter", base, modules_to_save=["lm_head"])
    store(tmp_path / "adapter", {WRAPPED[kind](name): value for name, value in tensors(tmp_path / "adapter").items()})
    out = merged(base, tmp_path / "adapter", tmp_path / "out")
    assert distance(ours(out), peft_weights(adapted)) == 0.0


def test_an_adapter_that_peft_saved_from_a_compiled_model_is_merged(bases: Bases, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = torch.compile(AutoModelForCausalLM.from_pretrained(bases(False), dtype=torch.float32))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=LINEAR))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    assert all("_orig_mod" in name for name in tensors(tmp_path / "adapter"))
    out = merged(bases(False), tmp_path / "adapter", tmp_path / "out")
    ctx, _ = exporting.merge(tmp_path / "stage", bases(False), tmp_path / "adapter", parity_positions=64)
    record = exporting.parity(ctx)["merged"]
    assert record["mean_kl"] < 1e-9, "PEFT alone would compare the untrained base model"
    assert record["passed"]
    expected = {name.removeprefix("_orig_mod."): value for name, value in peft_weights(adapted).items()}
    assert distance(ours(out), expected) == 0.0


def test_an_adapter_with_data_dependent_start_is_merged(bases: Bases, tmp_path: Path) -> None:
    """EVA: ranks and scales of each layer stand in the patterns that PEFT writes."""
    import torch
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bases(False), dtype=torch.float32)
    settings = LoraConfig(
        r=4, target_modules=LINEAR, init_lora_weights="eva", eva_config=EvaConfig(rho=2.0), task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, settings, low_cpu_mem_usage=True)
    torch.manual_seed(1)
    text = [{"input_ids": torch.randint(3, 600, (4, 32)), "attention_mask": torch.ones(4, 32)} for _ in range(6)]
    initialize_lora_eva_weights(adapted, text, show_progress_bar=False)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    out = merged(bases(False), tmp_path / "adapter", tmp_path / "out")
    assert distance(ours(out), peft_weights(adapted)) == 0.0


def test_a_pissa_adapter_that_peft_made_plain_is_merged(bases: Bases, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bases(False), dtype=torch.float32)
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR, init_lora_weights="pissa_niter_4")
    adapted = get_peft_model(model, settings)
    adapted.peft_config["default"].init_lora_weights = True  # PEFT's own recipe, before it saves the start
    adapted.save_pretrained(tmp_path / "start")
    adapted.peft_config["default"].init_lora_weights = "pissa_niter_4"
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "raw")
    with pytest.raises(OperatorError, match="pissa_niter_4") as caught:
        open_merged(bases(False), [(tmp_path / "raw", 1.0)])
    assert "path_initial_model_for_weight_conversion" in caught.value.hint
    adapted.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    out = merged(bases(False), tmp_path / "plain", tmp_path / "out")
    assert distance(ours(out), peft_weights(adapted)) < 1e-5


def test_a_start_that_took_a_part_of_the_base_is_not_combined_with_a_rounded_base(bases: Bases, tmp_path: Path) -> None:
    adapt(tmp_path / "adapter", bases(False), init_lora_weights="olora")
    with pytest.raises(OperatorError, match=r"base_rounding — got nf4; .* init_lora_weights = olora"):
        open_merged(bases(False), [(tmp_path / "adapter", 1.0)], base_rounding="nf4")


def test_a_change_of_a_bias_that_the_base_lacks_is_refused(bases: Bases, tmp_path: Path) -> None:
    adapt(tmp_path / "adapter", bases(False), lora_bias=True, target_modules=["q_proj"])
    with pytest.raises(OperatorError, match=r"q_proj \(lora_bias\), but this layer has no bias") as caught:
        open_merged(bases(False), [(tmp_path / "adapter", 1.0)])
    assert "PEFT" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "lost", "named"),
    [
        ({"bias": "lora_only"}, "q_proj.base_layer.bias", r"bias = lora_only trained .*q_proj\.bias"),
        ({"bias": "all"}, "k_proj.bias", r"bias = all trained .*k_proj\.bias"),
        ({"lora_bias": True}, "q_proj.lora_B.bias", r"q_proj lacks lora_B\.bias"),
        ({"trainable_token_indices": [3]}, "trainable_tokens_delta", "has 1 tokens, but the file has no rows"),
    ],
    ids=["lora_only", "all", "lora_bias", "tokens"],
)
def test_what_was_trained_and_not_saved_is_named(
    settings: dict[str, Any], lost: str, named: str, bases: Bases, tmp_path: Path
) -> None:
    base = bases(False, "Qwen2")
    adapt(tmp_path / "adapter", base, **{**settings, "target_modules": ["q_proj"]})
    kept = {name: value for name, value in tensors(tmp_path / "adapter").items() if not name.endswith(lost)}
    store(tmp_path / "adapter", kept)
    with pytest.raises(OperatorError, match=named):
        open_merged(base, [(tmp_path / "adapter", 1.0)])


def test_tokens_outside_the_vocabulary_and_tokens_of_a_tied_pair_are_refused(bases: Bases, tmp_path: Path) -> None:
    adapt(tmp_path / "wide", bases(False), vocab=644, trainable_token_indices=[641])
    kept = {name: value for name, value in tensors(tmp_path / "wide").items() if value.shape[0] != 644}
    store(tmp_path / "wide", kept)
    with pytest.raises(OperatorError, match=r"has token 641, but model\.embed_tokens\.weight has 640 rows"):
        open_merged(bases(False), [(tmp_path / "wide", 1.0)])
    adapt(tmp_path / "pair", bases(True), trainable_token_indices={"embed_tokens": TOKENS, "lm_head": TOKENS})
    with pytest.raises(OperatorError, match="names lm_head, but the file has no rows of it"):
        open_merged(bases(False), [(tmp_path / "pair", 1.0)])


def test_an_adapter_of_one_side_keeps_its_side_when_another_adapter_needs_two_matrices(
    bases: Bases, tmp_path: Path
) -> None:
    base = bases(True)
    adapt(tmp_path / "tokens", base, trainable_token_indices=TOKENS)
    adapt(tmp_path / "head", base, modules_to_save=["lm_head"])
    (tmp_path / "out").mkdir()
    merge(base, [(tmp_path / "tokens", 1.0), (tmp_path / "head", 1.0)], tmp_path / "out")
    before, after = ours(base), ours(tmp_path / "out")
    rows = tensors(tmp_path / "tokens")["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    head = tensors(tmp_path / "head")["base_model.model.lm_head.weight"]
    assert float((after[EMBEDDING][TOKENS] - rows).abs().max()) < 1e-6
    expected = head + 0
    expected[TOKENS] += rows - before[EMBEDDING][TOKENS]
    assert float((after[HEAD] - expected).abs().max()) < 1e-6


def test_lora_of_both_sides_of_a_tied_pair_names_the_way_out(bases: Bases, tmp_path: Path) -> None:
    base = bases(True)
    adapted = adapt(tmp_path / "adapter", base, target_modules=["embed_tokens", "lm_head"])
    with pytest.raises(OperatorError, match="share one matrix") as caught:
        open_merged(base, [(tmp_path / "adapter", 1.0)])
    assert "untie_word_embeddings = true" in caught.value.hint
    out = merged(base, tmp_path / "adapter", tmp_path / "out", untie=True)
    assert difference(adapted, out) < 2e-5


def test_layers_that_are_stored_transposed_are_merged(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    for kind, settings in {"lora": {}, "dora": {"use_dora": True}}.items():
        adapted = adapt(
            tmp_path / kind, tmp_path / "base", target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, **settings
        )
        out = merged(tmp_path / "base", tmp_path / kind, tmp_path / f"{kind}-out")
        expected = peft_weights(adapted)
        found = ours(out)
        assert max(float((found[name] - expected[name]).abs().max()) for name in found) <= 1e-6


def test_the_tensors_of_a_merge_with_tokens_are_read_in_any_part(bases: Bases, tmp_path: Path) -> None:
    adapt(tmp_path / "adapter", bases(True), trainable_token_indices=TOKENS)
    weights = open_merged(bases(True), [(tmp_path / "adapter", 1.0)])
    whole = weights.read(EMBEDDING)
    for start, stop in ((0, 4), (4, 6), (599, 601), (0, 640)):
        assert (weights.read_rows(EMBEDDING, start, stop) == whole[start:stop]).all()


def test_the_folder_of_an_adapter_that_is_not_loras_names_the_way_out(bases: Bases, tmp_path: Path) -> None:
    adapt(tmp_path / "adapter", bases(False))
    spoiled = copy_folder(tmp_path / "adapter", tmp_path / "spoiled")
    edit_json(spoiled / "adapter_config.json", target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(OperatorError, match="target_parameters") as caught:
        open_merged(bases(False), [(spoiled, 1.0)])
    assert "merge_and_unload" in caught.value.hint
