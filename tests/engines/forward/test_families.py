"""Every family that an export knows trains on rows without padding: gradients are those of each row alone, and no logit
of a document moves when another one changes."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from tests.engines.forward.test_rows import LENGTHS, SMALL

pytestmark = pytest.mark.torch

VOCABULARY = SMALL["vocab_size"]
NETWORK: dict[str, Any] = {**SMALL, "initializer_range": 0.2}
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "beta_fast": 16.0, "beta_slow": 2.0,
}  # fmt: skip
GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8}
GEMMA3: dict[str, Any] = {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}
MINISTRAL: dict[str, Any] = {
    "head_dim": 8,
    "sliding_window": None,
    "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4},
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "head_dim": 8}
EYES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
DYNAMIC: dict[str, Any] = {
    "max_position_embeddings": 13,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
}


def longrope(context: int) -> dict[str, Any]:
    """Rotary positions with other frequencies for all rows of a forward pass, if one is longer than the context."""
    factors = {"short_factor": [1.0, 1.1], "long_factor": [1.0, 8.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5, **factors}
    return {"original_max_position_embeddings": context, "rope_parameters": rope}


PACKED, ALONE = "one sequence", "row by row"
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Gemma2ForCausalLM": (ALONE, "Gemma2", {**GEMMA, "final_logit_softcapping": 5.0, "sliding_window": 64}),
    "Gemma3ForCausalLM": (PACKED, "Gemma3Text", {**GEMMA3, "sliding_window": 64}),
    "Gemma3ForConditionalGeneration": (PACKED, "Gemma3", {**GEMMA3, "sliding_window": 64}),
    "GptOssForCausalLM": (ALONE, "GptOss", {**EXPERTS, "num_local_experts": 4, "sliding_window": 64}),
    "GraniteForCausalLM": (PACKED, "Granite", {"logits_scaling": 8.0, "attention_multiplier": 0.3}),
    "LlamaForCausalLM": (PACKED, "Llama", {}),
    "Ministral3ForCausalLM": (PACKED, "Ministral3", MINISTRAL),
    "MistralForCausalLM": (PACKED, "Mistral", {"sliding_window": 64}),
    "MistralForCausalLM, short window": (ALONE, "Mistral", {"sliding_window": 6}),
    "Olmo2ForCausalLM": (PACKED, "Olmo2", {}),
    "Phi3ForCausalLM": (PACKED, "Phi3", {}),
    "Phi3ForCausalLM, longrope": (PACKED, "Phi3", longrope(14)),
    "Phi3ForCausalLM, beyond": (ALONE, "Phi3", longrope(13)),
    "LlamaForCausalLM, beyond": (ALONE, "Llama", DYNAMIC),
    "Qwen2ForCausalLM": (PACKED, "Qwen2", {}),
    "Qwen3ForCausalLM": (PACKED, "Qwen3", {"head_dim": 8}),
    "Qwen3MoeForCausalLM": (ALONE, "Qwen3Moe", {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 24}),
    "SmolLM3ForCausalLM": (PACKED, "SmolLM3", {"num_hidden_layers": 4}),
}
QUICK = ("Gemma3ForCausalLM", "Phi3ForCausalLM, beyond", "Qwen3MoeForCausalLM")


def made(name: str) -> Any:
    """A small model, loaded as the engine loads one, with weights large enough that a leak between rows would show."""
    import torch
    import transformers

    _, kind, more = FAMILIES[name]
    torch.manual_seed(3)
    if "Conditional" not in name:
        config = getattr(transformers, f"{kind}Config")(**{**NETWORK, **more})
    else:
        config = getattr(transformers, f"{kind}Config")(text_config={**NETWORK, **more}, vision_config=EYES)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert type(model).__name__ == name.partition(",")[0]
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter_name.endswith("sinks"):
                parameter.normal_()
    return model.train()


def examples(changed: int = -1) -> list[Any]:
    """Ragged rows; the row of this number has other tokens."""
    from engines.training.loss import Example

    rows = []
    for number, length in enumerate(LENGTHS):
        draw = random.Random(number + 100 * (number == changed))
        ids = [draw.randrange(3, VOCABULARY) for _ in range(length)]
        counted = random.Random(number)
        rows.append(Example(ids, [token if counted.random() < 0.6 else -100 for token in ids[:-1]] + ids[-1:]))
    return rows


def gradients(model: Any) -> dict[str, Any]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def alone(model: Any) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of each row alone, with transformers' own eager attention and torch's loss."""
    from torch import tensor
    from torch.nn.functional import cross_entropy

    total, scored = 0.0, sum(example.scored for example in examples())
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    for example in examples():
        logits = model(input_ids=tensor([example.input_ids]), use_cache=False).logits[0, :-1]
        loss = cross_entropy(logits.float(), tensor(example.labels[1:]), ignore_index=-100, reduction="sum") / scored
        loss.backward()
        total += float(loss.detach())
    model.set_attn_implementation(own)
    return total, gradients(model)


def test_every_family_that_an_export_knows_is_here() -> None:
    from exporters.hf_model.architectures import ARCHITECTURES

    # transformers knows no causal language model of that class: an engine cannot load it.
    assert {name.partition(",")[0] for name in FAMILIES} == set(ARCHITECTURES) - {"Mistral3ForConditionalGeneration"}


def few(names: Iterable[str]) -> list[Any]:
    """All families, most of them as more examples."""
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.thorough) for name in names]


@pytest.mark.parametrize("name", few(FAMILIES))
def test_gradients_are_those_of_each_row_alone(name: str) -> None:
    import torch

    from engines.forward.arrangement import arrange
    from engines.forward.label_loss import LabelLoss, has_standard_loss, rows_of
    from engines.forward.rows_attention import rows_in_sequence
    from engines.training.loss import one_sequence

    model = made(name)
    expected, wanted = alone(model)
    way = arrange(model, longest=max(LENGTHS))
    assert way.way == FAMILIES[name][0], way.reason
    assert has_standard_loss(model)
    loss, batch, scored = LabelLoss(model), one_sequence(examples()), sum(example.scored for example in examples())
    total = 0.0
    if way.way == ALONE:
        for row in rows_of(batch):
            part = loss.total(model, row) / scored
            part.backward()
            total += float(part.detach())
    else:
        with rows_in_sequence(batch["lengths"]):
            whole = loss.total(model, batch) / scored
            whole.backward()
        total = float(whole.detach())
    assert total == pytest.approx(expected, rel=1e-6)
    here = gradients(model)
    assert here.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        near = torch.allclose(here[parameter], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))
        assert near, parameter


@pytest.mark.parametrize("name", few(name for name, (way, *_) in FAMILIES.items() if way == PACKED))
def test_no_logit_of_a_document_moves_when_another_one_changes(name: str) -> None:
    import torch

    from engines.forward.arrangement import arrange
    from engines.forward.rows_attention import rows_in_sequence
    from engines.training.loss import one_sequence

    model = made(name)
    assert arrange(model, longest=max(LENGTHS)).way == PACKED

    def logits(changed: int) -> list[Any]:
        batch = one_sequence(examples(changed))
        with torch.no_grad(), rows_in_sequence(batch["lengths"]):
            out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
        return list(out.split(list(LENGTHS)))

    before = logits(-1)
    for changed in range(len(LENGTHS)):
        moved = [not torch.equal(old, new) for old, new in zip(before, logits(changed), strict=True)]
        assert moved == [at == changed for at in range(len(LENGTHS))]
