"""Whether the types of a model's tensors are those of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engines.json_text import read_object
from recipes.problems import OperatorError, printable

_WHOLE = frozenset({"BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})


def refuse_whole_numbers(folder: Path, types: Mapping[str, str]) -> None:
    """Refuse weights that are whole numbers, of a model whose config.json does not say how it was quantized:
    transformers takes each number for the weight itself.

    Args:
        folder: the model's folder.
        types: the type of each of its tensors.

    Raises:
        OperatorError: there are such weights.
    """
    config = folder / "config.json"
    if config.is_file() and read_object(config).get("quantization_config"):
        return
    found = sorted(name for name, kind in types.items() if name.endswith(".weight") and kind in _WHOLE)
    if found:
        raise OperatorError(
            f"model — {printable(str(folder), 400)} has weights that are whole numbers without a scale"
            f" ({printable(found[0], 200)}: {types[found[0]]}), and no quantization_config in its config.json",
            "use the 16-bit model that they were made from",
        )
