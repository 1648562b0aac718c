"""The importance matrix: weights of the input columns of each matrix, which some file types need.

For a linear layer y = W x it is the mean of x squared over the tokens of a text, one number per column, as llama.cpp's
llama-imatrix computes it. This module computes it with transformers' forward pass, one window of tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.files import atomic_file
from engines.llama.ggml_types import TYPES
from engines.llama.gguf_file import read_gguf
from engines.llama.gguf_write import NewTensor, text_list, text_value, uint32_value
from exporters.gguf.file_writer import Piece, Progress, ready, write_file
from exporters.gguf.quant_types import Shape
from recipes.problems import OperatorError, printable


@dataclass(frozen=True)
class Importance:
    """An importance matrix.

    Attributes:
        values: mean squared input by GGUF tensor name, float32 [columns].
        tokens: number of tokens it was computed from.
        windows: number of windows, and tokens of the longest one.
        source: name of the text.
    """

    values: Mapping[str, NDArray[np.float32]]
    tokens: int
    windows: tuple[int, int]
    source: str

    def of(self, shape: Shape) -> NDArray[np.float32] | None:
        """The importances of a tensor's columns, float32 [columns]; None when the matrix lacks the tensor.

        Raises:
            OperatorError: their number differs from the tensor's columns.
        """
        found = self.values.get(shape.name)
        if found is not None and len(found) != shape.columns:
            raise OperatorError(
                f"the importance matrix has {len(found)} columns for {shape.name}, but the tensor has {shape.columns}"
            )
        return found


def compute_importance(
    model: Any, modules: Mapping[str, str], windows: Sequence[Sequence[int]], source: str, progress: Progress
) -> Importance:
    """Run the model over the windows and collect the inputs of its linear layers.

    Args:
        model: a transformers model in evaluation mode.
        modules: the layer's name in transformers by the GGUF tensor's name.
        windows: token ids.
        source: name of the text.
        progress: called with the number of tokens processed since the last call.
    """
    import torch

    sums: dict[str, Any] = {}
    hooks = []

    def collect(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            # float32 [batch, tokens, columns] → float64 [columns]
            squares = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double().square().sum(0)
            sums[name] = squares if name not in sums else sums[name] + squares

        return hook

    layers = dict(model.named_modules())
    for name, module in modules.items():
        hooks.append(layers[module].register_forward_pre_hook(collect(name)))
    tokens = 0
    try:
        with torch.inference_mode():
            for window in windows:
                model(torch.tensor([list(window)]), use_cache=False)
                tokens += len(window)
                progress(len(window))
    finally:
        for hook in hooks:
            hook.remove()
    values = {name: (total / max(1, tokens)).float().numpy() for name, total in sums.items()}
    bad = next((name for name, row in values.items() if not np.isfinite(row).all()), None)
    if bad is not None:
        raise OperatorError(f"the importance matrix of {bad} is not finite: the model overflows on this text")
    return Importance(values, tokens, (len(windows), max(map(len, windows), default=0)), source)


def save_importance(importance: Importance, path: Path) -> None:
    """Write it in llama.cpp's GGUF format of importance matrices, so that its own tools can use it."""
    keys = {
        "general.architecture": text_value("imatrix"),
        "general.type": text_value("imatrix"),
        "imatrix.datasets": text_list([importance.source]),
        "imatrix.chunk_count": uint32_value(importance.windows[0]),
        "imatrix.chunk_size": uint32_value(importance.windows[1]),
    }
    tensors = []
    for name, row in sorted(importance.values.items()):
        sums, counts = row * np.float32(importance.tokens), np.asarray([importance.tokens], np.float32)
        tensors += [_row_tensor(f"{name}.in_sum2", sums), _row_tensor(f"{name}.counts", counts)]
    with atomic_file(path) as file:
        write_file(file, keys, tensors)


def _row_tensor(name: str, row: NDArray[np.float32]) -> tuple[NewTensor, list[Piece]]:
    """float32 [columns] as a matrix of one row."""
    return NewTensor(name, (len(row), 1), TYPES["F32"].id, row.nbytes), [ready(row.astype("<f4"), row.size)]


def load_importance(path: Path) -> Importance:
    """Read an importance matrix in llama.cpp's GGUF format.

    Raises:
        OperatorError: the file is not an importance matrix.
    """
    try:
        header = read_gguf(path)
    except OperatorError as error:
        raise OperatorError(f"not an importance matrix: {error}", "make it with llama-imatrix") from error
    try:
        tensors = {t.name: np.asarray(t.data, np.float32).ravel() for t in gguf.GGUFReader(path).tensors}
        names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
        counts = {name: float(tensors[f"{name}.counts"][0]) for name in names}
        field = gguf.GGUFReader(path).get_field("imatrix.datasets")
        source = str(field.contents()[0]) if field is not None else path.name
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise OperatorError(f"{path} is not a GGUF importance matrix: {printable(str(error), 200)}") from error
    sums = {name: tensors[f"{name}.in_sum2"] for name in names}
    # A tensor without counts gets equal weights in every column, as in llama.cpp.
    with np.errstate(all="ignore"):  # the result is checked below
        values = {n: sums[n] / np.float32(counts[n]) if counts[n] > 0 else np.ones_like(sums[n]) for n in names}
    sound = all(math.isfinite(counts[n]) and np.isfinite(row).all() and (row >= 0).all() for n, row in values.items())
    if not values or not sound:
        raise OperatorError(
            f"{path} contains no importances, or negative or non-finite ones", "make it with llama-imatrix"
        )
    chunks, size = (header.scalar(f"imatrix.{name}", 0) for name in ("chunk_count", "chunk_size"))
    windows = (chunks or 1, size) if isinstance(chunks, int) and isinstance(size, int) else (1, 0)
    return Importance(values, int(max(counts.values())), windows, source)
