"""A linear layer with a LoRA adapter as one step of automatic differentiation, for a GPU.

PEFT writes `W x + s B (A x)` as six operations. The processor starts each of them and its gradients, and on a fast GPU
starting them takes longer than they take; two of them move whole outputs through memory for a product by `s` and a sum.
Here the adapter's product is added while it is computed, in both directions. It is the same sum, rounded in another
order, so a training on the CPU, which keeps its bits from version to version, stays with PEFT's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear


def join_products(model: torch.nn.Module) -> int:
    """Let every plain LoRA layer over a frozen linear layer compute this way; returns their number.

    DoRA, biases of adapters, layers in 4 bits and layers that are trained themselves keep PEFT's way.
    """
    found = 0
    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer):
            layer.forward = partial(_forward, layer, layer.forward)
            found += 1
    return found


def _is_plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    return (
        type(base) is torch.nn.Linear
        and len(layer.lora_A) == 1
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
        and not layer.fan_in_fan_out
        and not any(parameter.requires_grad for parameter in base.parameters())
    )


def _forward(layer: Any, own: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    names = layer.active_adapters
    if args or kwargs or layer.disable_adapters or layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        return own(x, *args, **kwargs)
    name, base = names[0], layer.get_base_layer()
    first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, first, second = x.to(dtype), first.to(dtype), second.to(dtype)
    if not x.dtype == first.dtype == second.dtype:
        return own(x)
    weight = base.weight.to(x.dtype)
    bias = None if base.bias is None else base.bias.to(x.dtype)
    dropout = layer.lora_dropout[name]
    dropped = None if isinstance(dropout, torch.nn.Identity) or not dropout.training else dropout(x)
    result: torch.Tensor = _Adapted.apply(x, dropped, weight, bias, first, second, float(layer.scaling[name]))
    return result


class _Adapted(torch.autograd.Function):
    """All of one type: `x` and `dropped` [..., inputs], `weight` [outputs, inputs], `first` [r, inputs], `second`
    [outputs, r]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        first: torch.Tensor,
        second: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = _rows(x)
            into = rows if dropped is None else _rows(dropped)
            low = into @ first.t()
            result = torch.nn.functional.linear(rows, weight, bias).addmm_(low, second.t(), alpha=scale)
        ctx.save_for_backward(into, low, weight, first, second)
        ctx.scale, ctx.has_dropped = scale, dropped is not None
        return result.view(*x.shape[:-1], result.shape[-1])

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> Any:
        into, low, weight, first, second = ctx.saved_tensors
        rows = _rows(above)
        low_above = (rows @ second).mul_(ctx.scale)
        of_second = (rows.t() @ low).mul_(ctx.scale)
        of_first = low_above.t() @ into
        shape = (*above.shape[:-1], into.shape[-1])
        of_dropped = (low_above @ first).view(shape) if ctx.has_dropped else None
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = rows @ weight
            if not ctx.has_dropped:
                of_x.addmm_(low_above, first)
            of_x = of_x.view(shape)
        return of_x, of_dropped, None, None, of_first, of_second, None


def _rows(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, values.shape[-1])
