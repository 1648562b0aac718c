"""Where a training begins: at step 0, from the weights of another one, or after a checkpoint of another run.

`start_from` names a finished output or a checkpoint. A checkpoint is continued with its optimizer, schedule, random
states and position, so it needs the same inputs. From an output only the weights are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, BASE_JSON, is_adapter
from engines.artifacts.custody import Parent, ancestors, custody_of, parent_ids
from engines.artifacts.manifest import MANIFEST, ManifestError, manifest_sha256, read_manifest
from engines.artifacts.sharded import refuse_shards
from engines.context import Input, ResumePoint, StageContext
from engines.json_text import read_object
from engines.stage_file import moment
from engines.training.inputs import input_folder
from recipes.problems import OperatorError, printable
from recipes.stages.adapter.fields import AdapterFields
from recipes.stages.training import TrainingFields

START_FROM = "start_from"
_TRAINER_STATE = "trainer_state.json"
_ARITHMETIC = {
    "rope_theta", "rope_parameters", "rms_norm_eps", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "r",
}  # fmt: skip
"""Keys of config.json and adapter_config.json that decide what the same weights compute."""


_STATE_OF = {
    "adamw_torch_fused": "adamw_torch",
    "paged_adamw_8bit": "adamw_8bit",
    "paged_lion_8bit": "lion_8bit",
    "paged_lion_32bit": "lion_32bit",
}
"""Optimizers whose states have the form of another one's."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def continued_checkpoint(ctx: StageContext[TrainingFields]) -> ResumePoint | None:
    """The checkpoint of another run that this training continues; None if it starts at step 0.

    Raises:
        OperatorError: its training read other inputs than this stage reads.
    """
    folder = start_folder(ctx)
    if folder is None or not (folder / _TRAINER_STATE).is_file():
        return None
    if not (folder / MANIFEST).is_file():
        raise OperatorError(
            f"{START_FROM} — {folder} is a checkpoint of another program: it has {_TRAINER_STATE} and no {MANIFEST}",
            f"to start from its weights, name a copy without {_TRAINER_STATE}; its optimizer cannot be continued",
        )
    try:
        manifest = read_manifest(folder)
        sha256 = manifest_sha256(folder)
    except ManifestError as error:
        raise OperatorError(f"{START_FROM} — {folder}: {error}", "name another checkpoint") from error
    _require_same_method(ctx, folder, manifest)
    _require_same_inputs(ctx, folder, manifest)
    return ResumePoint(int(manifest.get("attempt", 0)), int(manifest["step"]), folder, sha256)


def use_first_start(ctx: StageContext[TrainingFields]) -> None:
    """Take over when the training began whose checkpoint this attempt continues: its rows have the date of then."""
    point = ctx.resume or continued_checkpoint(ctx)
    if point is None:
        return
    with suppress(ManifestError):
        ctx.first_start = moment(read_manifest(point.path).get("first_start")) or ctx.first_start


def first_weights(ctx: StageContext[TrainingFields]) -> Path | None:
    """The folder with the weights from which a new training starts; None if it starts from random weights.

    Raises:
        OperatorError: the folder's weights are meant for another base model.
    """
    folder = start_folder(ctx)
    if folder is None or (folder / _TRAINER_STATE).is_file():
        return None
    _require_kind(ctx, folder)
    if getattr(ctx.stage, "takes_from_base", False):
        raise OperatorError(
            f"{START_FROM} — the adapter in {folder} is one over the whole base model, and"
            f" init_lora_weights = {getattr(ctx.stage, 'init_lora_weights', '')} takes a part out of it",
            'set init_lora_weights = "true", or leave start_from out',
        )
    base = ctx.inputs.get("model")
    if base is not None and (folder / BASE_JSON).is_file():
        recorded = read_object(folder / BASE_JSON).get("manifest_sha256")
        if recorded and base.manifest_sha256 and recorded != base.manifest_sha256:
            raise OperatorError(
                f"{START_FROM} — {folder} is an adapter of another base model",
                "name the base model that it was trained on, or leave start_from out",
            )
    elif base is not None and is_adapter(folder):
        _warn_of_another_base(ctx, folder, base)
    return folder


def _require_kind(ctx: StageContext[TrainingFields], folder: Path) -> None:
    """A stage that trains an adapter starts from a LoRA adapter, every other one from a model.

    Raises:
        OperatorError: the folder has the other one, or an adapter of another kind.
    """
    stage: object = ctx.stage
    adapts = isinstance(stage, AdapterFields)
    if not is_adapter(folder):
        if adapts:
            raise OperatorError(
                f"{START_FROM} — {folder} has no {ADAPTER_CONFIG}, and this stage trains an adapter",
                "for a full model, set model to it and leave start_from out; else name the folder of an adapter",
            )
        return
    if not adapts:
        raise OperatorError(
            f"{START_FROM} — {folder} is an adapter, and this stage trains all weights of a model",
            f"merge it first (cockpit merge {folder}) and set model to the result",
        )
    kind = read_object(folder / ADAPTER_CONFIG).get("peft_type", "LORA")
    if kind != "LORA":
        raise OperatorError(
            f"{START_FROM} — {folder} is an adapter of another kind; got {printable(str(kind))}; allowed: LORA",
            "name a LoRA adapter, or leave start_from out",
        )


def _warn_of_another_base(ctx: StageContext[TrainingFields], folder: Path, base: Input) -> None:
    """An adapter without Cockpit's record says only the name of its base, which a copy may not have."""
    named = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    known = {Path(base.name).name, *(() if base.path is None else (base.path.name, base.path.resolve().name))}
    if isinstance(named, str) and named and Path(named).name not in known:
        ctx.warn(
            f"{START_FROM}: {folder} names {printable(named, 200)} as its base model, and model is"
            f" {printable(base.name, 200)}; over another base, an adapter is not what was trained"
        )


def require_fitting_weights(folder: Path, model: Any) -> None:
    """Check that the tensors of a folder are those of the model: names, shapes, and the settings that scale them.

    Raises:
        OperatorError: the first few differences.
    """
    there = _shapes(folder)
    here, config = _expected(model)
    problems = [
        f"{name} has the shape {there[name]}, not {here[name]}"
        for name in here
        if there.get(name, here[name]) != here[name]
    ]
    problems += [
        f"{name} is missing" for name in sorted(set(here) - set(there)) if not _is_tied(name, here, there, model)
    ]
    problems += [f"{name} is not a weight of this model" for name in sorted(set(there) - set(here))]
    problems += _settings(folder, config)
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise OperatorError(
            f"{START_FROM} — the weights in {folder} do not fit: {'; '.join(problems[:4])}{more}",
            "give the stage the shapes and settings of that training",
        )


def start_folder(ctx: StageContext[TrainingFields]) -> Path | None:
    """The folder that `start_from` names, of weights or of a checkpoint; None without one."""
    given = ctx.inputs.get(START_FROM)
    return None if given is None else input_folder(given)


def _require_same_method(ctx: StageContext[TrainingFields], folder: Path, manifest: dict[str, Any]) -> None:
    """A checkpoint's optimizer has a state for each trained weight, in the form of that optimizer."""
    adapter, adapts = is_adapter(folder), isinstance(ctx.stage, AdapterFields)
    if adapter != adapts:
        kinds = ("all weights of a model", "an adapter")
        raise OperatorError(
            f"{START_FROM} — the checkpoint {folder} is of a training of {kinds[adapter]}, and this stage trains"
            f" {kinds[adapts]}; its optimizer's state does not fit",
            "name a checkpoint of the same method, or start from finished weights: RUN:STAGE without @STEP",
        )
    optim = manifest.get("optim")
    if isinstance(optim, str) and _STATE_OF.get(optim, optim) != _STATE_OF.get(ctx.stage.optim, ctx.stage.optim):
        raise OperatorError(
            f"{START_FROM} — the checkpoint {folder} has the state of {optim}; got optim = {ctx.stage.optim}",
            f"set optim = {optim}, or start from finished weights: RUN:STAGE without @STEP",
        )


def _require_same_inputs(ctx: StageContext[TrainingFields], folder: Path, manifest: dict[str, Any]) -> None:
    known = {str(link["id"]) for link in ancestors(manifest)} | set(parent_ids(manifest))
    for field, given in ctx.inputs.items():
        if field == START_FROM:
            continue
        [identity] = custody_of([Parent(given.name, given.path)])["parents"]
        if identity not in known:
            raise OperatorError(
                f"{START_FROM} — the checkpoint {folder} was trained with another {field} than {given.name}, so its"
                " position would be wrong",
                "name the same inputs, or start from its finished weights: RUN:STAGE without @STEP",
            )


def _shapes(folder: Path) -> dict[str, list[int]]:
    refuse_shards(folder)
    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt") as tensors:
                found |= {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise OperatorError(f"{START_FROM} — {file} cannot be read: {error}", "name another folder") from error
    if not found:
        raise OperatorError(f"{START_FROM} — {folder} has no safetensors file", "name a folder with weights")
    return found


def _expected(model: Any) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Names and shapes of the tensors that a folder of this model has, and the model's settings."""
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
        settings = model.peft_config["default"].to_dict()
    else:
        state, settings = model.state_dict(), model.config.to_dict()
    return {name: list(tensor.shape) for name, tensor in state.items()}, settings


def _is_tied(name: str, here: Iterable[str], there: Iterable[str], model: Any) -> bool:
    """Whether a tensor is not stored because it is another one's storage, such as a tied output head."""
    state = model.state_dict()
    if name not in state:
        return False
    same = (other for other in here if other != name and other in state and other in set(there))
    return any(state[other].data_ptr() == state[name].data_ptr() for other in same)


def _settings(folder: Path, config: dict[str, Any]) -> list[str]:
    file = next((path for name in (ADAPTER_CONFIG, "config.json") if (path := folder / name).is_file()), None)
    if file is None:
        return []
    stored = read_object(file)
    plain = json.loads(json.dumps({key: config[key] for key in _ARITHMETIC & config.keys()}, default=str))
    found = [
        f"{key} is {stored[key]!r}, not {value!r}"
        for key, value in sorted(plain.items())
        if key in stored and stored[key] != value
    ]
    there, here = _taken_out(stored), _taken_out(config)
    return found if there == here else [*found, f"init_lora_weights is {there or True!r}, not {here or True!r}"]


def _taken_out(config: dict[str, Any]) -> str:
    """The initialization that changed an adapter's base model; empty for an adapter over the whole base model."""
    value = config.get("init_lora_weights")
    return value if isinstance(value, str) and value.startswith(_CHANGES_BASE) else ""
