"""Where a model's weights are, and how gradients come together: one process, DDP, or FSDP2.

torch's own modules do it, and Cockpit places them itself. accelerate's rules do not fit: they trained with DDP where
FSDP was requested on a processor, and they average gradients over processes, while the loss here is already divided by
the labels of all processes. So gradients are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from engines.world import World
from recipes.problems import OperatorError

SINGLE, DDP, FSDP2 = "single", "ddp", "fsdp2"


def strategy_asked(stage: Any, world: World) -> str:
    """The strategy of a stage's table `launch`; DDP for processes that were started without one."""
    if world.size == 1:
        return SINGLE
    asked = getattr(getattr(stage, "launch", None), "strategy", DDP)
    return DDP if asked == SINGLE else str(asked)


class Placement:
    """The model whole in one process."""

    name = SINGLE

    def forward(self, work: Callable[[], Any]) -> Any:
        """What `work`, a forward pass, returns: a loss whose backward pass follows."""
        return work()

    def synced(self, *, last: bool) -> AbstractContextManager[None]:
        """Around the passes of a micro-batch: gradients of all processes come together in the last one of a step."""
        del last
        return nullcontext()


class DataParallel(Placement):
    """The model whole in each process; gradients are summed during the backward pass (DDP)."""

    name = DDP

    def __init__(self, model: torch.nn.Module) -> None:
        self._wrapped = DistributedDataParallel(
            _Called(model), forward_sync_buffers=False, gradient_as_bucket_view=True
        )
        self._wrapped.register_comm_hook(None, _summed)

    def forward(self, work: Callable[[], Any]) -> Any:
        return self._wrapped(work)

    @contextmanager
    def synced(self, *, last: bool) -> Iterator[None]:
        before = self._wrapped.require_backward_grad_sync
        self._wrapped.require_backward_grad_sync = before and last
        try:
            yield
        finally:
            self._wrapped.require_backward_grad_sync = before


class _Called(torch.nn.Module):
    """A model within DDP whose forward pass is a function: a loss is more than the model's own forward pass."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        """The result of the work."""
        return work()


def _summed(_state: object, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """The sum of a bucket's gradients over the processes, where DDP would give the mean."""
    work = distributed.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


_summed.__annotations__.clear()  # DDP compares them with its own classes, and these are texts


class Sharded(Placement):
    """Each process has a part of each weight, of its gradient and of its optimizer state (FSDP2)."""

    name = FSDP2

    def __init__(self, model: torch.nn.Module, world: World, device: torch.device) -> None:
        mesh = init_device_mesh(device.type, (world.size,))
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise OperatorError(
                f"launch.strategy — {type(model).__name__} has no decoder layers that transformers marks as such, so"
                " fsdp2 has nothing to divide",
                'set launch.strategy = "ddp"',
            )
        for module in [*layers, model]:
            fully_shard(module, mesh=mesh)
        self._model: Any = model
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.set_force_sum_reduction_for_comms(True)
                part.set_gradient_divide_factor(1.0)

    @contextmanager
    def synced(self, *, last: bool) -> Iterator[None]:
        self._model.set_requires_gradient_sync(last)
        self._model.set_is_last_backward(last)
        yield


def place(model: torch.nn.Module, strategy: str, world: World, device: torch.device) -> Placement:
    """Place a loaded model, before its optimizer is made.

    Raises:
        OperatorError: the model cannot be placed so.
    """
    if world.size == 1:
        return Placement()
    return DataParallel(model) if strategy == DDP else Sharded(model, world, device)


def strategy_of(model: torch.nn.Module, placement: Placement) -> str:
    """The strategy that the types of the modules and weights show, whatever was requested."""
    if isinstance(model, FSDPModule) and all(isinstance(weight, DTensor) for weight in model.parameters()):
        return FSDP2
    wrapped = getattr(placement, "_wrapped", None)
    return DDP if isinstance(wrapped, DistributedDataParallel) and wrapped.module.model is model else SINGLE


def require_strategy(model: torch.nn.Module, placement: Placement, wanted: str) -> str:
    """The strategy that the modules show; refuse to train with another one than the requested.

    Raises:
        OperatorError: the modules are not those of the strategy.
    """
    found = strategy_of(model, placement)
    if found != wanted:
        raise OperatorError(
            f"launch.strategy — {wanted} was requested, and the model's modules are those of {found}",
            f'set launch.strategy = "{found}", or report this',
        )
    return found


def is_sharded(model: Any) -> bool:
    """Whether the model's weights are divided over the processes."""
    return isinstance(model, FSDPModule)


def part_of(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a divided tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any, *, keep: bool = True) -> Any:
    """A tensor with all its parts, on the processor; every process must ask for the same tensors in the same order.

    Args:
        value: a tensor, divided or not; anything else is returned unchanged.
        keep: False: take part in the exchange, and forget the result.
    """
    if not isinstance(value, DTensor):
        return value
    full: Any = value.full_tensor().detach()
    return full.cpu() if keep else None


def whole_state(value: Any, *, keep: bool = True) -> Any:
    """Nested tables and lists with whole tensors."""
    if isinstance(value, dict):
        return {name: whole_state(item, keep=keep) for name, item in value.items()}
    if isinstance(value, list):
        return [whole_state(item, keep=keep) for item in value]
    return whole(value, keep=keep)


def divided_like(value: Any, weight: torch.Tensor) -> Any:
    """This process's part of a whole tensor that belongs to a divided weight of the same shape."""
    if not isinstance(weight, DTensor) or isinstance(value, DTensor):
        return value
    if not torch.is_tensor(value) or value.shape != weight.shape:
        return value
    mesh = weight.device_mesh
    return distribute_tensor(value.to(weight.device), mesh, weight.placements, src_data_rank=None)


def keep_whole_states(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer take and give states as one process has them: its checkpoints fit any number of processes.

    `state_dict` becomes an exchange, which every process must call.
    """

    def gathered(_optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        return dict(whole_state(state))

    def divided(given: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        weights = [weight for group in given.param_groups for weight in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        by_number = dict(zip(numbers, weights, strict=True))
        return {
            **state,
            "state": {
                number: {name: divided_like(value, by_number[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            },
        }

    optimizer.register_state_dict_post_hook(gathered)
    optimizer.register_load_state_dict_pre_hook(divided)
