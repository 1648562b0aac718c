"""Sums the squared inputs of a layer's experts, each over the tokens that the router gives it.

transformers computes all experts of a layer in one module, whose matrices are stacked (`use_experts_implementation` in
its integrations/moe.py); the names of attributes are those.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_GATE = "_apply_gate"


@dataclass
class ExpertInputs:
    """The sums of one layer.

    Attributes:
        outer: of the inputs of the gate and up projections, float64 [experts, columns]; None before the first token.
        inner: of the inputs of the down projections, likewise.
        counts: tokens of each expert, float64 [experts].
    """

    outer: Any = None
    inner: Any = None
    counts: Any = field(default=None)

    def add(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inside: Any) -> None:
        """Add the inputs of one call of the module: a forward pre-hook. `inside`: torch bool [tokens], not padding."""
        import torch

        given = [*args, *kwargs.values()]
        every = given[0].detach().reshape(-1, given[0].shape[-1])
        hidden, chosen = every[inside], given[1].detach().reshape(len(every), -1)[inside]
        for expert in chosen.unique().tolist():
            if not 0 <= expert < len(module.down_proj):  # a token that no expert gets
                continue
            rows = hidden[(chosen == expert).any(-1)]
            middle = _middle(module, expert, rows)
            if self.outer is None:
                experts = len(module.down_proj)
                self.outer = torch.zeros(experts, rows.shape[-1], dtype=torch.float64, device=rows.device)
                self.inner = torch.zeros(experts, middle.shape[-1], dtype=torch.float64, device=rows.device)
                self.counts = torch.zeros(experts, dtype=torch.float64, device=rows.device)
            self.outer[expert] += rows.double().square().sum(0)
            self.inner[expert] += middle.double().square().sum(0)
            self.counts[expert] += len(rows)


def _middle(module: Any, expert: int, rows: Any) -> Any:
    """The input of an expert's down projection, float32 [tokens, columns]."""
    name = "gate_up_proj" if module.has_gate else "up_proj"
    matrix = getattr(module, name)[expert]
    found = rows @ (matrix if module.is_transposed else matrix.T)
    if module.has_bias:
        found = found + getattr(module, f"{name}_bias")[expert]
    return getattr(module, _GATE)(found) if module.has_gate else module.act_fn(found)
