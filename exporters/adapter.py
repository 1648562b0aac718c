"""A LoRA adapter in a folder, as PEFT saves it: its settings and tensors, and a refusal of everything else by name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporters.model_folder import read_json
from exporters.tensor_files import TensorInfo, read_header, to_float32
from recipes.problems import OperatorError, printable

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"

_UNUSED: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "modules_to_save": (None, []),
    "alora_invocation_tokens": (None,),
    "ensure_weight_tying": (None, False),
    # other initializations take something out of the base before training, so the original base is not theirs
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
}
"""Settings that change what an adapter means, with the values at which they do nothing. Others are refused."""

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
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    )
)
"""Settings that are read here, or that only concern how the adapter was trained."""

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


@dataclass
class Pair:
    """The two matrices of one layer: delta = scale * B A, with A [r, in] and B [out, r]."""

    module: str
    a: TensorInfo | None = None
    b: TensorInfo | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Adapter:
    """An adapter whose every tensor has its place."""

    folder: Path
    config: dict[str, Any]
    pairs: dict[str, Pair] = field(default_factory=dict)

    @property
    def base(self) -> dict[str, Any]:
        """What the adapter says about its base; empty when it says nothing."""
        path = self.folder / BASE
        return read_json(path) if path.is_file() else {}


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's settings and the headers of its tensors.

    Raises:
        OperatorError: it is not a LoRA adapter, uses a feature that the merge does not know, or has a tensor without
            a place or a partner; the text names it.
    """
    config = read_json(folder / CONFIG)
    _check_features(folder, config)
    path = folder / WEIGHTS
    if not path.is_file():
        raise OperatorError(f"{path} is missing", "save the adapter as safetensors")
    pairs: dict[str, Pair] = {}
    for info in read_header(path)[0]:
        match = _TENSOR.fullmatch(info.name)
        if match is None:
            raise OperatorError(
                f"{path}: tensor {printable(info.name, 200)} is none that the merge knows",
                "only LoRA of linear layers is merged",
            )
        if info.dtype not in ("F32", "F16", "BF16"):
            raise OperatorError(f"{path}: {printable(info.name, 200)} has type {info.dtype}; allowed F32, F16, BF16")
        pair = pairs.setdefault(match["module"], Pair(match["module"]))
        if (pair.a if match["side"] == "A" else pair.b) is not None:
            raise OperatorError(f"{path}: {printable(match['module'], 200)} has lora_{match['side']} twice")
        if match["side"] == "A":
            pair.a = info
        else:
            pair.b = info
    for module, pair in pairs.items():
        _check_pair(path, pair)
        pair.scale = _scale(config, module, pair)
    if not pairs:
        raise OperatorError(f"{path} holds no tensor", "the adapter was not saved completely")
    return Adapter(folder, config, pairs)


def read_matrix(info: TensorInfo) -> Any:
    """An adapter's matrix as float32, in its shape. These are small: r times a width."""
    with info.file.open("rb") as file:
        file.seek(info.offset)
        raw = file.read(info.values * (4 if info.dtype == "F32" else 2))
    return to_float32(raw, info.dtype).reshape(info.shape)


def _check_features(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise OperatorError(f"{folder}: peft_type — got {printable(str(kind))}; allowed LORA")
    for name, value in config.items():
        if name in _UNUSED:
            if value not in _UNUSED[name]:
                raise OperatorError(
                    f"{folder}: {name} — got {printable(str(value))}; the merge does not know this adapter feature"
                )
        elif name not in _HARMLESS and value not in (None, False, [], {}):
            raise OperatorError(
                f"{folder}: {printable(name)} — got {printable(str(value))}; the merge does not know this adapter feature"
            )


def _check_pair(path: Path, pair: Pair) -> None:
    name = printable(pair.module, 200)
    if pair.a is None or pair.b is None:
        raise OperatorError(
            f"{path}: {name} lacks lora_{'A' if pair.a is None else 'B'}.weight", "the adapter was not saved completely"
        )
    shapes = pair.a.shape, pair.b.shape
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][0] != shapes[1][1]:
        raise OperatorError(f"{path}: {name} has lora_A {shapes[0]} and lora_B {shapes[1]}, which do not multiply")


def _scale(config: dict[str, Any], module: str, pair: Pair) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), with PEFT's patterns by module name."""
    assert pair.a is not None
    rank = int(_pattern(config.get("rank_pattern"), module, config.get("r")))
    alpha = float(_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha")))
    if rank != pair.a.shape[0]:
        raise OperatorError(
            f"{printable(module, 200)}: the adapter says rank {rank}, its matrices have {pair.a.shape[0]}"
        )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that, as a regular expression, matches the end of the module's name at a dot."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
