"""A configuration of `accelerate launch` as the table `launch` of the stage that trains.

The file says over how many processes a script computes and how they share the model; the training's own configuration
says what is trained. Every key of both ends in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from cockpit.importing.config import Config, Entry
from cockpit.importing.draft import TUNED, Draft, Outcome, Status, each, is_off, plain, unneeded, whole
from recipes.stages.launch.fields import DDP, FSDP2, SINGLE, LaunchFields
from recipes.stages.registry import STAGE_TYPES

PROGRAM = "accelerate launch"
SIGNS = frozenset({"distributed_type", "num_processes", "num_machines", "compute_environment", "machine_rank"})
"""Keys of which such a file has two."""
_FIELD = ".".join((TUNED, "launch"))
_STRATEGIES = {"NO": SINGLE, "MULTI_GPU": DDP, "MULTI_CPU": DDP, "FSDP": FSDP2, "DEEPSPEED": FSDP2}
_SHARDING = {"FULL_SHARD": FSDP2, "1": FSDP2, "SHARD_GRAD_OP": FSDP2, "2": FSDP2, "NO_SHARD": DDP, "3": DDP}
"""`fsdp_sharding_strategy`, by name and by its number in torch."""
_PLACED = "Cockpit divides the model by its decoder layers, and saves its parts itself"
_OF_HOSTS = "launch says where the processes meet, and each host starts the same recipe"
_NOT_MOVED = "weights and optimizer stay on the device"
_OWN = {
    **each(
        "compute_environment debug main_training_function enable_cpu_affinity use_cpu same_network machine_rank "
        "rdzv_backend mpirun_config",
        unneeded(_OF_HOSTS),
    ),
    **each(
        "tpu_env tpu_name tpu_use_cluster tpu_use_sudo tpu_vm tpu_zone command_file commands downcast_bf16",
        unneeded("belongs to TPUs"),
    ),
    **each("dynamo_config dynamo_backend", unneeded("torch_compile of the stage compiles its layers")),
}
"""Keys that need no look at other keys."""


class _Launch:
    """A configuration of accelerate while its keys are read."""

    def __init__(self, draft: Draft, config: Config) -> None:
        self._draft, self._config = draft, config
        self._name = PurePath(config.path).name
        self.waiting = dict(config.entries)

    def take(self, key: str) -> Entry | None:
        """The entry of a key that has a value and no outcome yet."""
        entry = self.waiting.get(key)
        if entry is not None and entry.value is None:
            self.note(key, None, "unset")
            return None
        return entry

    def value(self, key: str) -> Any:
        """The value of a key; None without one."""
        entry = self._config.entries.get(key)
        return None if entry is None else entry.value

    def number(self, key: str, default: int) -> int:
        """A whole number; any other value is reported."""
        entry = self.take(key)
        if entry is None:
            return default
        try:
            return whole(entry.value)
        except ValueError as error:
            self.note(key, entry.value, "different", str(error))
            return default

    def note(self, key: str, value: Any, status: Status, says: str = "", fields: tuple[str, ...] = ()) -> None:
        """Give a key its outcome; its line is in the report's words, because the report is of another file."""
        self.waiting.pop(key, None)
        line = self._config.line(*key.split("."))
        where = f"{self._name}{f':{line}' if line else ''}  {key}"
        self._draft.outcomes.append(Outcome(where, value, 0, status, fields, says))


def apply_launch(draft: Draft, config: Config) -> None:
    """Set `launch` of the stage that trains by a configuration of accelerate."""
    found = _Launch(draft, config)
    for key, rule in _OWN.items():
        if (entry := found.take(key)) is not None:
            found.note(key, entry.value, "unneeded", rule.says)
    strategy, why = _asked_inside(draft, *_strategy(found))
    able = _able(draft)
    if strategy == FSDP2 and FSDP2 not in able:
        strategy, why = DDP, f"{why}; a {draft.method} stage has no fsdp2: each process has the whole model"
    _set(draft, found, strategy, why)
    _format(draft, found)
    _devices(draft, found)
    _of_fsdp(draft, found)
    _of_deepspeed(found)
    for key, entry in list(found.waiting.items()):
        found.note(key, entry.value, "unknown", f"not a key of {PROGRAM} that is known here")


def _able(draft: Draft) -> tuple[str, ...]:
    fields = STAGE_TYPES[draft.method]
    assert issubclass(fields, LaunchFields), "the stage trains"
    return fields.strategies


def _strategy(found: _Launch) -> tuple[str, str]:
    """The strategy, and what it was read from."""
    kind = str(found.value("distributed_type") or "MULTI_GPU").upper()
    if kind not in _STRATEGIES:
        return DDP, f"{plain(kind)} has no strategy of its own here"
    if kind == "FSDP":
        given = _inside(found, "fsdp_config").get("fsdp_sharding_strategy")
        return _SHARDING.get(str(given).upper(), FSDP2), "fsdp2 divides weights, gradients and optimizer state"
    if kind == "DEEPSPEED":
        stage = _inside(found, "deepspeed_config").get("zero_stage")
        divides = str(stage) in {"2", "3"} or stage is None
        return (FSDP2 if divides else DDP), f"ZeRO-{plain(stage) if stage is not None else '?'}: no DeepSpeed is used"
    return _STRATEGIES[kind], ""


def _asked_inside(draft: Draft, strategy: str, why: str) -> tuple[str, str]:
    """The strategy, where the training's own configuration asks to divide the model."""
    asking = [key for key in ("fsdp", "deepspeed") if not is_off(draft.value(key))]
    for key in asking:
        draft.again(key, "unneeded", "launch.strategy has it, by the file of --accelerate")
    if strategy == DDP and asking:
        return FSDP2, f"{asking[0]} of the training's configuration"
    return strategy, why


def _set(draft: Draft, found: _Launch, strategy: str, why: str) -> None:
    """Set the table, and note the keys that decide it."""
    total, hosts = found.number("num_processes", 1), found.number("num_machines", 1)
    names = ("distributed_type", "num_processes", "num_machines", "main_process_ip", "main_process_port")
    values: dict[str, Any] = {"processes": max(1, total // max(1, hosts)), "strategy": strategy}
    problem = "" if hosts > 0 and total % hosts == 0 else f"{total} processes do not divide evenly over {hosts} hosts"
    if hosts > 1:
        place = f"{found.value('main_process_ip') or ''}:{found.value('main_process_port') or ''}"
        values |= {"nodes": hosts, "rendezvous": place}
    if total == 1:
        values = {}
    problem = problem or _problem(draft, values)
    if not problem and values:
        draft.stages.setdefault(TUNED, {})["launch"] = values
    words = ", ".join(f"{name} = {plain(value)}" for name, value in values.items()) or "one process"
    for name in names:
        if (entry := found.take(name)) is None:
            continue
        if problem:
            found.note(name, entry.value, "different", problem)
        elif values:
            says = f"{words}; {why}" if why and name == "distributed_type" else words
            found.note(name, entry.value, "imported", says, (_FIELD,))
        else:
            found.note(name, entry.value, "unneeded", "one process, as a recipe has it")


def _problem(draft: Draft, values: Mapping[str, Any]) -> str:
    """Why the stage cannot have a table `launch`; empty if it can."""
    return next((f"{key}: {says}" for key, says in draft.problems_together({"launch": dict(values)})), "")


def _format(draft: Draft, found: _Launch) -> None:
    """`mixed_precision`, where the training's own keys name no format: transformers' arguments come first."""
    entry = found.take("mixed_precision")
    if entry is None:
        return
    name = str(entry.value).lower()
    if name in {"no", "false"}:
        found.note("mixed_precision", entry.value, "unneeded", "asks for what a recipe does anyway")
    elif draft.get(f"{TUNED}.bf16") is not None or draft.get(f"{TUNED}.fp16") is not None:
        found.note("mixed_precision", entry.value, "unneeded", "the training's own configuration names the format")
    elif name in {"bf16", "fp16"} and not (problem := draft.put(f"{TUNED}.{name}", True)):
        found.note("mixed_precision", entry.value, "imported", "", (f"{TUNED}.{name}",))
    else:
        says = problem if name in {"bf16", "fp16"} else "computes in float32, bfloat16 or float16"
        found.note("mixed_precision", entry.value, "different", says)


def _devices(draft: Draft, found: _Launch) -> None:
    entry = found.take("gpu_ids")
    if entry is None:
        return
    if str(entry.value) == "all":
        found.note("gpu_ids", entry.value, "unneeded", "a stage may use all GPUs")
        return
    listed = [part.strip() for part in str(entry.value).split(",") if part.strip()]
    problem = draft.put(f"{TUNED}.devices", listed)
    fields = () if problem else (f"{TUNED}.devices",)
    found.note("gpu_ids", entry.value, "different" if problem else "imported", problem, fields)


def _inside(found: _Launch, key: str) -> Mapping[str, Any]:
    value = found.value(key)
    return value if isinstance(value, dict) else {}


def _of_fsdp(draft: Draft, found: _Launch) -> None:
    if found.take("fsdp_config") is None:
        return
    for name, value in _inside(found, "fsdp_config").items():
        key = f"fsdp_config.{name}"
        if name == "fsdp_activation_checkpointing" and not is_off(value):
            problem = draft.put(f"{TUNED}.gradient_checkpointing", True)
            fields = () if problem else (f"{TUNED}.gradient_checkpointing",)
            found.note(key, value, "different" if problem else "imported", problem, fields)
        elif name == "fsdp_offload_params" and not is_off(value):
            found.note(key, value, "different", _NOT_MOVED)
        elif name == "fsdp_sharding_strategy" and str(value).upper() in {"SHARD_GRAD_OP", "2"}:
            found.note(key, value, "different", "fsdp2 divides the weights too: less memory, more exchange")
        elif name == "fsdp_sharding_strategy" and str(value).upper() not in _SHARDING:
            found.note(key, value, "different", "the model is divided over all processes, on all hosts")
        else:
            found.note(key, value, "unneeded", _PLACED)
    found.note("fsdp_config", "…", "unneeded", "its keys are listed one by one")


def _of_deepspeed(found: _Launch) -> None:
    if found.take("deepspeed_config") is None:
        return
    for name, value in _inside(found, "deepspeed_config").items():
        key = f"deepspeed_config.{name}"
        if name == "deepspeed_config_file":
            found.note(key, value, "different", "this file is not read: compare its batch and its optimizer yourself")
        elif name.startswith("offload_") and not is_off(value):
            found.note(key, value, "different", _NOT_MOVED)
        elif name in {"gradient_accumulation_steps", "gradient_clipping"}:
            says = "the training's own gradient_accumulation_steps and max_grad_norm count"
            found.note(key, value, "unneeded", says)
        else:
            found.note(key, value, "unneeded", _PLACED)
    found.note("deepspeed_config", "…", "unneeded", "its keys are listed one by one")
