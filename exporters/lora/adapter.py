"""Reads a LoRA adapter folder of PEFT, and refuses every setting and tensor that the merge does not support."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_JSON
from engines.files import refuse_special_files
from engines.json_text import read_object
from exporters.hf_model.tensor_files import TensorInfo, read_float_rows, read_header
from recipes.problems import OperatorError, printable, shown

_UNUSED: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "ensure_weight_tying": (None, False),
    # other initializations change the base model before training, so the adapter does not fit the original one
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
}
"""Settings that change an adapter's meaning, with the values without effect. Other values are refused."""

_HARMLESS = frozenset(
    (
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    )
)
"""Settings that this module reads, or that only affect training."""

_KINDS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("use_rslora", "use_dora"), lambda value: isinstance(value, bool), "true, false"),
    (("rank_pattern", "alpha_pattern"), lambda value: isinstance(value, dict), "a table of module = number"),
    (
        ("modules_to_save",),
        lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
        "a list of names",
    ),
)
"""The types of settings that this module reads; a value of another type is refused, not ignored."""

_PREFIX = "base_model.model."
_PARTS = {
    "lora_A": "a",
    "lora_B": "b",
    "lora_embedding_A": "embedding_a",
    "lora_embedding_B": "embedding_b",
    "lora_magnitude_vector": "magnitude",
}
_LORA = re.compile(rf"(?P<module>.+)\.(?P<part>{'|'.join(_PARTS)})(?:\.default)?(?:\.weight)?")
_FULL = re.compile(r"(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)?\.(?P<leaf>weight|bias)")


@dataclass
class Change:
    """An adapter's change of one weight.

    A linear layer's is scale * B A, with A [r, in] and B [out, r]; an embedding's scale * (B A) transposed, with
    A [r, rows] and B [columns, r]. With a magnitude (DoRA, arXiv 2402.09353), the changed weight is scaled so that its
    norms equal the magnitude: the norms of rows for a linear layer, of columns for an embedding.

    Attributes:
        module: the layer's name in the base model.
        a, b: the two matrices.
        embedding: whether the layer is an embedding.
        magnitude: the norms, or None.
        scale: alpha / r, or alpha / sqrt(r).
    """

    module: str
    a: TensorInfo | None = None
    b: TensorInfo | None = None
    embedding: bool = False
    magnitude: TensorInfo | None = None
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the changed weight."""
        assert self.a is not None
        assert self.b is not None
        return (self.a.shape[1], self.b.shape[0]) if self.embedding else (self.b.shape[0], self.a.shape[1])

    @property
    def norms(self) -> int:
        """Number of norms in its magnitude."""
        return self.shape[1] if self.embedding else self.shape[0]


@dataclass(frozen=True)
class Adapter:
    """An adapter with all its tensors assigned to weights.

    Attributes:
        folder: its folder.
        config: its settings.
        changes: by the changed weight's name in the base model.
        replacements: full tensors (modules_to_save, resized or saved embeddings), by their names in the base model.
    """

    folder: Path
    config: dict[str, Any]
    changes: dict[str, Change] = field(default_factory=dict)
    replacements: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def base(self) -> dict[str, Any]:
        """The adapter's base.json, which describes its base model; empty without the file."""
        path = self.folder / BASE_JSON
        return read_object(path) if path.is_file() else {}


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's settings and the headers of its tensors.

    Raises:
        OperatorError: the folder is not a LoRA adapter, has a feature or tensor that the merge does not support, or
            lacks a tensor; the message names it.
    """
    refuse_special_files(folder)
    config = read_object(folder / ADAPTER_CONFIG)
    _check_features(folder, config)
    path = _weights_file(folder)
    adapter = Adapter(folder, config)
    for info in read_header(path)[0]:
        _place(adapter, path, info)
    for change in adapter.changes.values():
        _check_change(path, change)
        _check_magnitude(path, config, change)
        change.scale = _scale(config, change)
    _check_saved(path, config, adapter.replacements)
    if not adapter.changes and not adapter.replacements:
        raise OperatorError(f"{path} contains no tensors", "the adapter was not saved completely")
    return adapter


def read_matrix(info: TensorInfo) -> Any:
    """An adapter's tensor in its shape, float32 [rows, columns] or [length]. LoRA's are small: r times a width."""
    return read_float_rows(info, 0, info.rows).reshape(info.shape)


def _weights_file(folder: Path) -> Path:
    path = folder / ADAPTER_WEIGHTS
    if path.is_file():
        return path
    pickled = folder / "adapter_model.bin"
    if pickled.is_file():
        raise OperatorError(
            f"{pickled} is a pickle, which merge does not load: loading it can run any code that its author put in",
            "get the adapter as safetensors; or, if you trust the author, load it and save it with "
            "safe_serialization=True",
        )
    raise OperatorError(f"{path} is missing", "save the adapter as safetensors")


def _place(adapter: Adapter, path: Path, info: TensorInfo) -> None:
    """Assign a tensor to a change or to the replacements."""
    known_as = printable(info.name, 200)
    if info.dtype not in ("F32", "F16", "BF16"):
        raise OperatorError(f"{path}: {known_as} has type {info.dtype}; allowed F32, F16, BF16")
    name = info.name.removeprefix(_PREFIX)
    lora, full = _LORA.fullmatch(name), _FULL.fullmatch(name)
    if name == info.name or (lora is None and (full is None or "lora_" in name)):
        raise OperatorError(
            f"{path}: tensor {known_as} is not supported by merge",
            "merge supports LoRA of linear layers and embeddings, DoRA magnitudes and modules_to_save",
        )
    if lora is None:
        assert full is not None
        target = f"{full['module']}.{full['leaf']}"
        if target in adapter.replacements:
            raise OperatorError(f"{path}: {printable(target, 200)} occurs twice")
        adapter.replacements[target] = info
        return
    change = adapter.changes.setdefault(f"{lora['module']}.weight", Change(lora["module"]))
    part = _PARTS[lora["part"]]
    change.embedding = change.embedding or part.startswith("embedding")
    part = part.removeprefix("embedding_")
    if getattr(change, part) is not None:
        raise OperatorError(f"{path}: {printable(lora['module'], 200)} has {lora['part']} twice")
    setattr(change, part, info)


def _check_features(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise OperatorError(f"{folder}: peft_type — got {printable(str(kind))}; allowed LORA")
    for names, fits, allowed in _KINDS:
        for name in names:
            if config.get(name) is not None and not fits(config[name]):
                raise OperatorError(f"{folder}/{ADAPTER_CONFIG}: {name} — got {shown(config[name])}; allowed {allowed}")
    for name, value in config.items():
        if name in _UNUSED:
            if value not in _UNUSED[name]:
                raise OperatorError(
                    f"{folder}: {name} — got {printable(str(value))}; merge does not support this adapter feature"
                )
        elif name not in _HARMLESS and value not in (None, False, [], {}):
            raise OperatorError(
                f"{folder}: {printable(name)} — got {printable(str(value))}; merge does not support this adapter "
                "feature"
            )


def _check_change(path: Path, change: Change) -> None:
    name = printable(change.module, 200)
    if change.a is None or change.b is None:
        raise OperatorError(
            f"{path}: {name} lacks lora_{'A' if change.a is None else 'B'}.weight",
            "the adapter was not saved completely",
        )
    shapes = change.a.shape, change.b.shape
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][0] != shapes[1][1]:
        raise OperatorError(f"{path}: {name} has lora_A {shapes[0]} and lora_B {shapes[1]}, with incompatible shapes")
    if change.magnitude is not None and change.magnitude.shape != (change.norms,):
        raise OperatorError(
            f"{path}: {name} has lora_magnitude_vector {change.magnitude.shape}; allowed ({change.norms},)"
        )


def _check_magnitude(path: Path, config: dict[str, Any], change: Change) -> None:
    wanted, found = bool(config.get("use_dora")), change.magnitude is not None
    if wanted != found:
        name = printable(change.module, 200)
        raise OperatorError(
            f"{path}: {name} {'has a' if found else 'lacks its'} lora_magnitude_vector, but use_dora is "
            f"{str(wanted).lower()}",
            "the adapter's settings and tensors come from different training runs",
        )


def _check_saved(path: Path, config: dict[str, Any], replacements: dict[str, TensorInfo]) -> None:
    """Check that full tensors are of modules_to_save, or an embedding or head that PEFT saves by itself, and that none
    of modules_to_save is missing."""
    modules = {target: target.rpartition(".")[0] for target in replacements}
    saved = list(config.get("modules_to_save") or [])
    for target, module in modules.items():
        if not any(_is_named(module, name) for name in (*saved, "embed_tokens", "lm_head")):
            raise OperatorError(
                f"{path}: tensor {printable(replacements[target].name, 200)} is not supported by merge: "
                f"{printable(module, 200)} is not in modules_to_save"
            )
    for name in saved:
        if not any(_is_named(module, name) for module in modules.values()):
            raise OperatorError(
                f"{path}: modules_to_save has {printable(name, 200)}, but the file has no tensor of it",
                "the adapter was not saved completely",
            )


def _is_named(module: str, name: str) -> bool:
    """PEFT's rule: any end of the module's name, so that `norm` means `input_layernorm` too."""
    return module.endswith(name)


def _scale(config: dict[str, Any], change: Change) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), with PEFT's patterns by module name."""
    assert change.a is not None
    name = printable(change.module, 200)
    wanted = _pattern(config.get("rank_pattern"), change.module, config.get("r"))
    alpha = _pattern(config.get("alpha_pattern"), change.module, config.get("lora_alpha"))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (wanted, alpha))
    if not numbers or not math.isfinite(alpha):
        raise OperatorError(
            f"{name}: r and lora_alpha — got {printable(f'{wanted} and {alpha}')}; allowed finite numbers"
        )
    if wanted != change.a.shape[0]:
        raise OperatorError(f"{name}: the adapter's settings have rank {wanted}, its matrices {change.a.shape[0]}")
    return float(alpha) / math.sqrt(wanted) if config.get("use_rslora") else float(alpha) / wanted


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that, as a regular expression, matches the end of the module's name at a dot."""
    for key, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise OperatorError(
                f"rank_pattern or alpha_pattern — got {printable(str(key))}; allowed a regular expression"
            ) from error
    return default
