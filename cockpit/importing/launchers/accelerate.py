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
_DECIDING = ("distributed_type", "num_processes", "num_machines", "main_process_ip", "main_process_port")
_KEPT = "each process has the whole model and reads rows of its own"
_FOREIGN = {
    "MEGATRON_LM": f"no Megatron-LM is used: {_KEPT}",
    "XLA": "Cockpit trains on no TPU; the processes are those of another machine",
    "TPU": "Cockpit trains on no TPU; the processes are those of another machine",
}
"""`distributed_type` that no strategy does; those of other makers' cards (MULTI_…) are DDP."""
_SHARDING = {"FULL_SHARD": FSDP2, "1": FSDP2, "SHARD_GRAD_OP": FSDP2, "2": FSDP2, "NO_SHARD": DDP, "3": DDP}
"""`fsdp_sharding_strategy`, by name and by its number in torch."""
_PLACED = "Cockpit divides the model by its decoder layers, and saves its parts itself"
_OF_HOSTS = "launch says where the processes meet, and each host starts the same recipe"
_NOT_MOVED = "weights and optimizer stay on the device"
_LIKE_ZERO_2 = "fsdp2 divides the weights too: less memory, more exchange"
_FSDP_KEYS = each(
    "fsdp_version fsdp_offload_params fsdp_min_num_params fsdp_sharding_strategy fsdp_reshard_after_forward "
    "fsdp_auto_wrap_policy fsdp_transformer_layer_cls_to_wrap fsdp_backward_prefetch fsdp_backward_prefetch_policy "
    "fsdp_state_dict_type fsdp_forward_prefetch fsdp_use_orig_params fsdp_cpu_ram_efficient_loading "
    "fsdp_sync_module_states fsdp_activation_checkpointing fsdp_activation_checkpointing_offload "
    "fsdp_mixed_precision_policy",
    unneeded(_PLACED),
)
_DEEPSPEED_KEYS = each(
    "zero_stage offload_optimizer_device offload_param_device offload_optimizer_nvme_path offload_param_nvme_path "
    "zero3_init_flag zero3_save_16bit_model deepspeed_config_file gradient_accumulation_steps gradient_clipping "
    "deepspeed_hostfile deepspeed_exclusion_filter deepspeed_inclusion_filter deepspeed_multinode_launcher "
    "deepspeed_moe_layer_cls_names",
    unneeded(_PLACED),
)
"""Keys of the two inner tables, as `accelerate launch` names its own arguments."""
_ROWS_SHARED = ("tp_size", "cp_size", "sp_size")
"""Keys of `parallelism_config` by which several processes compute one row."""
_OWN = {
    **each(
        "debug main_training_function enable_cpu_affinity same_network machine_rank rdzv_backend mpirun_config",
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
    _computer(found)
    strategy, why = _asked_inside(draft, *_strategy(found))
    able = _able(draft)
    if strategy == FSDP2 and FSDP2 not in able:
        strategy, why = DDP, f"{why}; a {draft.method} stage has no fsdp2: each process has the whole model"
    _set(draft, found, strategy, why)
    _format(draft, found)
    _devices(draft, found)
    _of_fsdp(draft, found)
    _of_deepspeed(found, strategy)
    _of_parallelism(found)
    for key, entry in list(found.waiting.items()):
        found.note(key, entry.value, "unknown", f"not a key of {PROGRAM} that is known here")


def _able(draft: Draft) -> tuple[str, ...]:
    fields = STAGE_TYPES[draft.method]
    assert issubclass(fields, LaunchFields), "the stage trains"
    return fields.strategies


def _strategy(found: _Launch) -> tuple[str, str]:
    """The strategy, and what it was read from."""
    kind = _kind(found)
    if kind == "NO":
        return SINGLE, "accelerate starts one process"
    if kind == "FSDP":
        strategy = _SHARDING.get(_sharding(found), FSDP2)
        return strategy, "fsdp2 divides weights, gradients and optimizer state" if strategy == FSDP2 else "NO_SHARD"
    if kind == "DEEPSPEED":
        stage = _inside(found, "deepspeed_config").get("zero_stage")
        divides = str(stage) in {"2", "3"} or stage is None
        return (FSDP2 if divides else DDP), f"ZeRO-{plain(stage) if stage is not None else '?'}: no DeepSpeed is used"
    return DDP, _FOREIGN.get(kind, "" if _has_strategy(kind) else f"{plain(kind)} is not known here: {_KEPT}")


def _kind(found: _Launch) -> str:
    """`distributed_type`; YAML reads NO without quotes as false."""
    value = found.value("distributed_type")
    return "NO" if value is False else str(value or "MULTI_GPU").upper()


def _sharding(found: _Launch) -> str:
    """How FSDP divides the model, by the key of either version."""
    table = _of_fsdp_table(found)
    given = table.get("fsdp_sharding_strategy", table.get("fsdp_reshard_after_forward"))
    return "SHARD_GRAD_OP" if _is_false(given) else str(given).upper()


def _is_false(value: Any) -> bool:
    """Whether a value is false, and not only absent."""
    return value is False or str(value).lower() == "false"


def _computer(found: _Launch) -> None:
    """The keys that say what kind of machine computes."""
    for key, usual, says in (
        ("compute_environment", "LOCAL_MACHINE", "a recipe starts processes on machines that you reach yourself"),
        ("use_cpu", False, "a stage computes on the GPUs that its machine shows it"),
    ):
        if (entry := found.take(key)) is not None:
            asked = not (str(entry.value).lower() == str(usual).lower() or is_off(entry.value))
            found.note(key, entry.value, "different" if asked else "unneeded", says)


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
    kind = _kind(found)
    total, hosts = found.number("num_processes", 1), found.number("num_machines", 1)
    problem = ""
    if kind == "NO":
        total, hosts = 1, 1
    else:
        problem = _uncountable(found, total, hosts)
    values: dict[str, Any] = {"processes": max(1, total // max(1, hosts)), "strategy": strategy}
    if hosts > 1:
        place = f"{found.value('main_process_ip') or ''}:{found.value('main_process_port') or ''}"
        values |= {"nodes": hosts, "rendezvous": place}
    if total == 1:
        values = {}
    problem = problem or _problem(draft, values)
    if not problem and values:
        draft.stages.setdefault(TUNED, {})["launch"] = values
    words = ", ".join(f"{name} = {plain(value)}" for name, value in values.items()) or "one process"
    for name in _DECIDING:
        if (entry := found.take(name)) is None:
            continue
        if problem:
            found.note(name, entry.value, "different", problem)
        elif values:
            says = f"{words}; {why}" if why and name == "distributed_type" else words
            foreign = name == "distributed_type" and not _has_strategy(kind)
            found.note(name, entry.value, "different" if foreign else "imported", says, () if foreign else (_FIELD,))
        else:
            found.note(name, entry.value, "unneeded", "one process, as a recipe has it")


def _uncountable(found: _Launch, total: int, hosts: int) -> str:
    """Why the numbers of processes and hosts do not say how many processes each host has; empty if they do."""
    if found.value("num_processes") is None:
        return "the file has no num_processes: set launch.processes"
    if total < 1 or hosts < 1:
        return f"got {total} processes on {hosts} hosts; allowed 1 or more of each"
    return "" if total % hosts == 0 else f"{total} processes do not divide evenly over {hosts} hosts"


def _has_strategy(kind: str) -> bool:
    """Whether a strategy does what a `distributed_type` does, on one maker's cards or another's."""
    return kind in {"FSDP", "DEEPSPEED"} or kind.startswith("MULTI_")


def _problem(draft: Draft, values: Mapping[str, Any]) -> str:
    """Why the stage cannot have a table `launch`; empty if it can."""
    return next((f"{key}: {says}" for key, says in draft.problems_together({"launch": dict(values)})), "")


def _format(draft: Draft, found: _Launch) -> None:
    """`mixed_precision`, where the training's own keys name no format: transformers' arguments come first,
    where they are true: it leaves accelerate's format in place where both are false."""
    entry = found.take("mixed_precision")
    if entry is None:
        return
    name = str(entry.value).lower()
    if name in {"no", "false"}:
        found.note("mixed_precision", entry.value, "unneeded", "asks for what a recipe does anyway")
    elif draft.get(f"{TUNED}.bf16") or draft.get(f"{TUNED}.fp16"):
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


def _of_fsdp_table(found: _Launch) -> dict[str, Any]:
    """The settings of FSDP; accelerate takes their names with and without its prefix."""
    table = _inside(found, "fsdp_config")
    return {name if str(name).startswith("fsdp_") else f"fsdp_{name}": value for name, value in table.items()}


def _table(found: _Launch, key: str, kind: str) -> list[tuple[str, Any]]:
    """The settings of an inner table whose own key gets its outcome here; empty where accelerate reads none of them."""
    entry = found.take(key)
    if entry is None:
        return []
    if not isinstance(entry.value, dict):
        found.note(key, entry.value, "unknown", "not a table of settings")
        return []
    found.note(key, "…", "unneeded", "its keys are listed one by one")
    if _kind(found) == kind:
        return list(entry.value.items())
    for name, value in entry.value.items():
        found.note(f"{key}.{name}", value, "unneeded", f"counts with distributed_type: {kind} only")
    return []


def _of_fsdp(draft: Draft, found: _Launch) -> None:
    for given, value in _table(found, "fsdp_config", "FSDP"):
        key = f"fsdp_config.{given}"
        name = given if str(given).startswith("fsdp_") else f"fsdp_{given}"
        sharding = _sharding(found) if name in {"fsdp_sharding_strategy", "fsdp_reshard_after_forward"} else ""
        if name == "fsdp_activation_checkpointing" and not is_off(value):
            problem = draft.put(f"{TUNED}.gradient_checkpointing", True)
            fields = () if problem else (f"{TUNED}.gradient_checkpointing",)
            found.note(key, value, "different" if problem else "imported", problem, fields)
        elif name in {"fsdp_offload_params", "fsdp_activation_checkpointing_offload"} and not is_off(value):
            found.note(key, value, "different", _NOT_MOVED)
        elif sharding in {"SHARD_GRAD_OP", "2"}:
            found.note(key, value, "different", _LIKE_ZERO_2)
        elif name == "fsdp_sharding_strategy" and sharding not in _SHARDING:
            found.note(key, value, "different", "the model is divided over all processes, on all hosts")
        else:
            _rest(found, key, value, name in _FSDP_KEYS)


def _rest(found: _Launch, key: str, value: Any, known: bool) -> None:
    if known:
        found.note(key, value, "unneeded", _PLACED)
    else:
        found.note(key, value, "unknown", f"not a key of {PROGRAM} that is known here")


def _of_deepspeed(found: _Launch, strategy: str) -> None:
    for name, value in _table(found, "deepspeed_config", "DEEPSPEED"):
        key = f"deepspeed_config.{name}"
        if name == "deepspeed_config_file":
            found.note(key, value, "different", "this file is not read: compare its batch and its optimizer yourself")
        elif name == "zero_stage" and strategy != FSDP2 and str(value) != "0":
            found.note(key, value, "different", "each process has the whole model and optimizer state: more memory")
        elif name == "zero_stage":
            found.note(key, value, "unneeded", "launch.strategy divides as much, or more")
        elif str(name).startswith("offload_") and not is_off(value):
            found.note(key, value, "different", _NOT_MOVED)
        elif name in {"gradient_accumulation_steps", "gradient_clipping"}:
            says = "the training's own gradient_accumulation_steps and max_grad_norm count"
            found.note(key, value, "unneeded", says)
        else:
            _rest(found, key, value, name in _DEEPSPEED_KEYS)


def _of_parallelism(found: _Launch) -> None:
    """Settings by which several processes compute one row: a recipe has none, so a step has more rows."""
    for name, value in _table(found, "parallelism_config", "FSDP"):
        key = f"parallelism_config.{name}"
        shares = str(name).removeprefix("parallelism_config_") in _ROWS_SHARED and str(value) not in {"1", "None"}
        says = f"no processes compute one row together: {_KEPT}, so a step has {plain(value)} times as many rows"
        found.note(key, value, "different" if shares else "unneeded", says if shares else _PLACED)
    for name, value in _table(found, "megatron_lm_config", "MEGATRON_LM"):
        found.note(f"megatron_lm_config.{name}", value, "different", _FOREIGN["MEGATRON_LM"])
