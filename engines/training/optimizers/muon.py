"""Muon for the matrices of the decoder's layers, and AdamW for the other weights, as one optimizer.

torch's Muon takes matrices only. Embeddings, the output head, norms and biases are AdamW's, as in the publications of
both (Jordan and others 2024; Liu and others 2025, arXiv 2502.16982). The scale of Muon's updates is that of AdamW's
(`match_rms_adamw`), so both have the same learning rate and weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from recipes.problems import OperatorError

MOMENTUM, STEPS = 0.95, 5
"""Of the published Muon: momentum with Nesterov's step, and iterations of Newton and Schulz."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Both optimizers over the same groups and the same states, so that a checkpoint has them as those of one.

    Args:
        matrices: weights with two dimensions, for Muon.
        others: groups of parameters for AdamW.
        lr: the learning rate.
        weight_decay: of the matrices; `others` have their own.
        betas: of AdamW.
        eps: of AdamW.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        others: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self._muon: Any = torch.optim.Muon(
            list(matrices),
            lr=lr,
            weight_decay=weight_decay,
            momentum=MOMENTUM,
            nesterov=True,
            ns_steps=STEPS,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw: Any = torch.optim.AdamW(list(others), lr=lr, betas=betas, eps=eps, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Let both compute with the groups and the states of this one."""
        matrices = len(self._muon.param_groups)
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:matrices], self.param_groups[matrices:]
        self._muon.state = self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None if closure is None else closure()
        self._muon.step()
        self._adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states and settings of a checkpoint."""
        super().load_state_dict(state_dict)
        self._share()


def muon_of(model: torch.nn.Module, decays: set[str], arguments: Any) -> MuonWithAdamW:
    """The optimizer of all weights of a model.

    Args:
        model: a causal language model of transformers.
        decays: names of the weights that decay.
        arguments: those of the Trainer.

    Raises:
        OperatorError: this torch has no Muon, or the model has no matrices for it.
    """
    if not hasattr(torch.optim, "Muon"):
        raise OperatorError(
            f"optim — torch {torch.__version__} has no Muon, which needs torch 2.9", 'set optim = "adamw_torch_fused"'
        )
    ends = {id(end.weight) for end in _ends(model) if end is not None}
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    matrices = [weight for _, weight in trained if weight.dim() == 2 and id(weight) not in ends]
    if not matrices:
        raise OperatorError(
            "optim — muon is for the matrices of layers, and this model has no trained ones",
            'set optim = "adamw_torch_fused"',
        )
    chosen = {id(weight) for weight in matrices}
    rest = [(name, weight) for name, weight in trained if id(weight) not in chosen]
    groups = [
        {"params": [weight for name, weight in rest if name in decays], "weight_decay": arguments.weight_decay},
        {"params": [weight for name, weight in rest if name not in decays], "weight_decay": 0.0},
    ]
    return MuonWithAdamW(
        matrices,
        [group for group in groups if group["params"]],
        lr=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()
