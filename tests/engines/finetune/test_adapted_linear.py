"""A layer with an adapter in one step computes what PEFT computes in six."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from engines.finetune.adapted_linear import join_products

pytestmark = pytest.mark.torch


class Two(torch.nn.Module):
    """Two layers, the first with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(6, 10)
        self.two = torch.nn.Linear(10, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(x)))


def adapted(**settings: Any) -> Any:
    torch.manual_seed(3)
    model = get_peft_model(
        Two().double(),
        LoraConfig(r=3, lora_alpha=7, target_modules=["one", "two"], init_lora_weights=False, **settings),
        autocast_adapter_dtype=False,
    )
    return model.double().train()


def outcome(model: Any) -> list[torch.Tensor]:
    """The output, and the gradients of the input and of every trained weight."""
    model.zero_grad()
    torch.manual_seed(5)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    result = model(x)
    result.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert x.grad is not None
    assert len(gradients) == 4
    return [result.detach(), x.grad, *(one.clone() for one in gradients if one is not None)]


@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.4}, {"use_rslora": True}])
def test_output_and_gradients_are_those_of_peft(settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    expected = outcome(model)
    assert join_products(model) == 2
    for found, wanted in zip(outcome(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_in_bfloat16_gradients_are_float32_and_near_those_of_peft() -> None:
    def narrow(change: Callable[[Any], int]) -> list[torch.Tensor]:
        model = adapted().to(torch.bfloat16)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        change(model)
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = model(torch.randn(2, 4, 6))
        result.float().square().sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    for found, wanted in zip(narrow(join_products), narrow(lambda _: 0), strict=True):
        assert found.dtype is torch.float32
        assert float((found - wanted).norm()) <= 0.02 * float(wanted.norm())


def test_a_disabled_adapter_adds_nothing() -> None:
    model = adapted()
    x = torch.randn(3, 6, dtype=torch.float64)
    with model.disable_adapter():
        expected = model(x)
    join_products(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert not torch.equal(model(x), expected)


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["one"], "target_modules": ["two"]}]
)
def test_layers_that_are_no_plain_lora_keep_their_way(settings: dict[str, Any]) -> None:
    torch.manual_seed(3)
    names = settings.pop("target_modules", ["one", "two"])
    model = get_peft_model(Two(), LoraConfig(r=3, target_modules=names, **settings))
    assert join_products(model) == (1 if "modules_to_save" in settings else 0)
