"""What a stage's engine builds before its first step, as plain values: stages with equal ones are the same to it.

The stage's own function runs with real data and a real model up to the point where its training would begin. Nothing is
read from the stage's fields here: every value is taken from an object that the engine has made of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from engines.context import GuardTrippedError, StopRequested
from engines.events.results import SampledText
from tests.engines.training.attempts import context
from tests.stage_context import TriedContext

_PLACES = {"output_dir", "logging_dir", "run_name"}
_LOSSES = (4.0, 3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 9.0)


class _BuiltError(Exception):
    """The session is there; its training does not begin."""


def built(tmp_path: Path, stage: Mapping[str, Any], inputs: Mapping[str, Path | str]) -> dict[str, Any]:
    """What the engine of a stage has made of its fields, by the names of the parts."""
    import torch

    torch.set_num_threads(1)
    ctx = context(tmp_path, stage, inputs)
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        _stop_at_the_training(monkeypatch, found)
        with suppress(_BuiltError):
            run_of(ctx)(ctx)
    assert found, "the stage has made no session"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    return found


def run_of(ctx: TriedContext) -> Any:
    """The function of the stage's kind."""
    from engines.finetune.stage import run as finetune
    from engines.preference.stage import run as prefer
    from engines.pretrain.stage import run as pretrain

    return {"pretrain": pretrain, "finetune": finetune, "dpo": prefer}[ctx.stage.kind]


@contextmanager
def read_as(kind: type[Any], field: str, value: Any) -> Iterator[None]:
    """Within it, whoever reads the field of a stage of this kind gets `value`: the passage of the field is removed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        # A property of the class comes before what an instance has.
        monkeypatch.setattr(kind, field, property(lambda _self: value), raising=False)
        yield


def _stop_at_the_training(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> None:
    from engines.training.session import Session

    def note(self: Session) -> None:
        found.update(_parts(self))
        raise _BuiltError

    monkeypatch.setattr(Session, "run", note)


def _parts(session: Any) -> dict[str, Any]:
    import torch
    from transformers import set_seed

    trainer, model = session.trainer, session.task.model
    trainer.create_optimizer()
    trainer.create_scheduler(session.planned_steps, trainer.optimizer)
    found = {
        "threads": torch.get_num_threads(),
        "kernels": (torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()),
        "arguments": {k: v for k, v in trainer.args.to_dict().items() if k not in _PLACES},
        "rates": [trainer.lr_scheduler.base_lrs[0] * session.schedule(step) for step in range(9)],
        "optimizer": _optimizer(trainer.optimizer, model),
        "config": {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"},
        "adapter": _adapter(model),
        "modules": {name: _module(module) for name, module in model.named_modules()},
        "weights": {name: _tensor(weight) for name, weight in model.state_dict().items()},
        "tied": len({weight.data_ptr() for weight in model.state_dict().values()}),
        "checkpointing": bool(getattr(model, "is_gradient_checkpointing", False)),
        "arrangement": session.task.arrangement.way,
        "batches": _batches(trainer),
        "reference": [getattr(item, "reference", None) for item in _items(session)],
        "steps": (session.planned_steps, session.save_every, session.eval_every, session.task.sample_steps),
        "scored": _held_out(session),
        "guards": _guards(session),
        "patience": [
            session.evaluations.early_stopping.note(step, loss) for step, loss in enumerate((2.0, 1.99, 1.9, 1.9, 1.9))
        ],
    }
    set_seed(0)
    found["samples"] = _samples(session)
    return found


def _items(session: Any) -> Any:
    return getattr(session.task.dataset, "items", [])


def _optimizer(optimizer: Any, model: Any) -> Any:
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"params": [names[id(weight)] for weight in group["params"]]}
        for group in optimizer.param_groups
    ]
    return type(optimizer).__name__, groups


def _adapter(model: Any) -> Any:
    if not hasattr(model, "peft_config"):
        return None
    config = model.peft_config["default"].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _module(module: Any) -> Any:
    quantized = getattr(getattr(module, "weight", None), "quant_state", None)
    return (
        type(module).__name__,
        getattr(module, "p", None),
        getattr(module, "variance_epsilon", None),
        str(getattr(module, "compute_dtype", None)),
        None if quantized is None else (quantized.quant_type, quantized.nested),
        [name for name, weight in module.named_parameters(recurse=False) if weight.requires_grad],
        len(module._forward_hooks),
    )


def _tensor(tensor: Any) -> Any:
    import torch

    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return tuple(tensor.shape), str(tensor.dtype), hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def _batches(trainer: Any) -> Any:
    """The batches of two epochs, in the order in which the training would take them."""
    loader = trainer.get_train_dataloader()
    if loader.num_workers:
        return loader.num_workers  # its processes would load the same
    epochs = []
    for epoch in range(2):
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        epochs.append([_plain(batch) for batch in loader])
    return epochs


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _held_out(session: Any) -> Any:
    """The batches of the val split and the words that say how they are scored."""
    held_out = getattr(session.trainer, "held_out", None)
    if held_out is not None and session.eval_every is not None:
        scored = session.evaluations.score(session.trainer)()
        return [len(batch) for batch in held_out.batches], scored.protocol, scored.tokens
    val = session.task.val
    return None if val is None else ([batch.input_ids.tolist() for batch in val], val.protocol)


def _guards(session: Any) -> Any:
    """What the guards say of made-up steps."""
    watch, said = session.watch, []
    for step, loss in enumerate(_LOSSES, start=1):
        for norm in (1.0, 300.0):
            trip = watch.before_step(loss, norm)
            said.append(None if trip is None else (trip.guard, trip.limit))
        watch.note_step(step, loss, len(_LOSSES) + 1)
        watch.note_evaluation(step, loss)
        trip = watch.after_step(step, len(_LOSSES) + 1)
        said.append(None if trip is None else (trip.guard, trip.limit))
    return said


def _samples(session: Any) -> Any:
    said: list[Any] = []
    emit = session.ctx.emit

    def listen(event: Any) -> int:
        if isinstance(event, SampledText):
            said.append((event.stage, event.prompt, event.text))
        return int(emit(event))

    session.ctx.emit = listen
    with suppress(StopRequested, GuardTrippedError):
        session.sample()
    return said
