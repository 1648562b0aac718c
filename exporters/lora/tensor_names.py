"""Reads the names that PEFT gives the tensors of an adapter, also those that a wrapped or compiled model adds to.

PEFT removes the adapter's name and the names of its wrappers when it saves through `save_pretrained`. Some of them stay
in files that were saved from a state dict, from a compiled model, or from a resized vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_PREFIX = ("base_model", "model")
_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""Modules that torch.compile, FSDP and activation checkpointing put around another one. They do not change weights."""
_MATRICES = {
    "lora_A": "a",
    "lora_B": "b",
    "lora_embedding_A": "embedding_a",
    "lora_embedding_B": "embedding_b",
    "lora_magnitude_vector": "magnitude",
}
_DEFAULT = "default"
"""PEFT's own name for an adapter. After `modules_to_save` another word is a module in it."""
_TOKENS, _TOKENS_BEFORE = "trainable_tokens_delta", "trainable_tokens_original"

Part = Literal["a", "b", "embedding_a", "embedding_b", "magnitude", "bias", "tokens", "full", "untrained"]
"""What a tensor is: a matrix of a change, its DoRA magnitude or bias, rows of single tokens, a full tensor, or the
state before training."""


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs.

    Attributes:
        module: the layer's name in the base model.
        part: what the tensor is.
        leaf: the changed parameter's name in the layer: weight, bias.
        adapter: the adapter's name, if the tensor's name has it.
        standard: whether PEFT finds the tensor by its name when it loads the adapter.
    """

    module: str
    part: Part
    leaf: str
    adapter: str | None
    standard: bool

    @property
    def target(self) -> str:
        """The changed parameter's name in the base model."""
        return f"{self.module}.{self.leaf}"


def place_of(name: str) -> Place | None:
    """The place of a tensor, by its name in the file; None for a name that is not of a LoRA adapter."""
    segments = [part for part in name.split(".") if part not in _WRAPPERS]
    unwrapped = len(segments) == len(name.split("."))
    if segments[:1] == ["module"]:  # DistributedDataParallel and DataParallel
        segments, unwrapped = segments[1:], False
    if tuple(segments[:2]) != _PREFIX:
        return None
    segments = segments[2:]
    at = next((n for n, part in enumerate(segments) if part in _MATRICES), None)
    if at is not None:
        return _matrix(segments, at, standard=unwrapped)
    if _TOKENS in segments or _TOKENS_BEFORE in segments:
        return _token_rows(segments, standard=unwrapped)
    return _full_tensor(segments, standard=unwrapped)


def _matrix(segments: list[str], at: int, *, standard: bool) -> Place | None:
    """`MODULE.lora_A[.ADAPTER][.weight]`, or the bias of lora_B."""
    module, part, rest = ".".join(segments[:at]), segments[at], segments[at + 1 :]
    leaf = rest.pop() if rest and rest[-1] in ("weight", "bias") else "weight"
    if not module or len(rest) > 1 or (leaf == "bias" and part != "lora_B"):
        return None
    kind = "bias" if leaf == "bias" else _MATRICES[part]
    return Place(module, kind, leaf, rest[0] if rest else None, standard and not rest)  # type: ignore[arg-type]


def _token_rows(segments: list[str], *, standard: bool) -> Place | None:
    """`MODULE.token_adapter.trainable_tokens_delta[.ADAPTER]`, or the same rows before training."""
    part = _TOKENS if _TOKENS in segments else _TOKENS_BEFORE
    at = segments.index(part)
    rest = segments[at + 1 :]
    if at < 2 or segments[at - 1] != "token_adapter" or len(rest) > 1:
        return None
    kind: Part = "tokens" if part == _TOKENS else "untrained"
    return Place(".".join(segments[: at - 1]), kind, "weight", rest[0] if rest else None, standard and not rest)


def _full_tensor(segments: list[str], *, standard: bool) -> Place | None:
    """`MODULE.weight`, with `base_layer`, `token_adapter.base_layer`, `modules_to_save[.default]` or
    `original_module` on the way."""
    part: Part = "full"
    adapter = None
    if "original_module" in segments:
        part = "untrained"
        segments.remove("original_module")
    if "modules_to_save" in segments:
        at = segments.index("modules_to_save")
        standard = False
        named = segments[at + 1] == _DEFAULT if len(segments) > at + 2 else False
        adapter = _DEFAULT if named else None
        segments = segments[:at] + segments[at + 1 + named :]
    for wrapper in ("token_adapter", "base_layer"):
        if wrapper in segments:
            segments.remove(wrapper)
    if len(segments) < 2 or any("lora_" in segment or not segment for segment in segments):
        return None
    return Place(".".join(segments[:-1]), part, segments[-1], adapter, standard)
