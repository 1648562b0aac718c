"""The importance matrix: weights of the input columns of each matrix, which some file types need.

For a linear layer y = W x it is the mean of x squared over the tokens of a text, one number per column, as llama.cpp's
llama-imatrix computes it. This module computes it with transformers' forward pass, which reads weights layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.files import atomic_file
from engines.llama.ggml_types import TYPES
from engines.llama.gguf_file import Value, read_gguf
from engines.llama.gguf_write import NewTensor, text_list, text_value, uint32_value
from exporters.gguf.expert_inputs import ExpertInputs
from exporters.gguf.file_writer import Piece, Progress, ready, write_file
from exporters.gguf.quant_types import Shape
from exporters.hf_model.tensor_files import row_chunks
from recipes.problems import OperatorError, printable

IMPORTANCE_FILE = "imatrix.gguf"
"""The name of an export's importance matrix, beside its files."""


class Network(Protocol):
    """A model whose modules can be watched while it runs: `exporters.reference.streamed_model.StreamedModel`."""

    modules: dict[str, Any]
    inside: Any

    def run(self, windows: Sequence[Sequence[int]], progress: Progress) -> None:
        """Compute the hidden states of windows."""


@dataclass(frozen=True)
class Importance:
    """An importance matrix.

    Attributes:
        values: mean squared input by GGUF tensor name, float32 [columns], or [experts, columns] for the matrices of
            experts.
        tokens: number of tokens it was computed from.
        windows: number of windows, and tokens of the longest one.
        source: name of the text.
        counts: tokens that each expert got, float32 [experts], by the name of the tensor of experts.
    """

    values: Mapping[str, NDArray[np.float32]]
    tokens: int
    windows: tuple[int, int]
    source: str
    counts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def of(self, shape: Shape) -> NDArray[np.float32] | None:
        """The importances of a tensor's columns, float32 [experts, columns]; None when the matrix lacks the tensor.

        Raises:
            OperatorError: their number differs from the tensor's.
        """
        found = self.values.get(shape.name)
        if found is None:
            return None
        rows = np.atleast_2d(found)
        if rows.shape != (shape.experts, shape.columns):
            wanted = f"{shape.columns}" if shape.experts == 1 else f"{shape.experts} x {shape.columns}"
            got = " x ".join(map(str, found.shape))
            raise OperatorError(
                f"the importance matrix has {got} columns for {shape.name}, but the tensor has {wanted}"
            )
        return rows


def weighted_chunks(
    shape: Shape, importance: NDArray[np.float32] | None
) -> Iterator[tuple[int, int, NDArray[np.float32] | None]]:
    """Bounds of chunks of a tensor's rows, each with the importances of its columns; a chunk is of one expert.

    Args:
        shape: the tensor.
        importance: float32 [experts, columns], or None.
    """
    each = shape.rows // shape.experts
    for expert in range(shape.experts):
        for start, stop in row_chunks(each, shape.columns):
            yield expert * each + start, expert * each + stop, None if importance is None else importance[expert]


def compute_importance(
    model: Network,
    modules: Mapping[str, str],
    windows: Sequence[Sequence[int]],
    source: str,
    progress: Progress,
    experts: Mapping[str, str] | None = None,
) -> Importance:
    """Run the model over the windows and collect the inputs of its linear layers.

    Args:
        model: the model.
        modules: the layer's name in transformers by the GGUF tensor's name.
        windows: token ids.
        source: name of the text.
        progress: called with the number of tokens processed since the last call.
        experts: the name of the module with a layer's experts, by the GGUF tensor's name.
    """
    sums: dict[str, Any] = {}
    inputs = {module: ExpertInputs() for module in (experts or {}).values()}
    hooks = []

    def collect(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            # float32 [batch, tokens, columns] → float64 [columns]
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])[model.inside]
            squares = rows.double().square().sum(0)
            sums[name] = squares if name not in sums else sums[name] + squares

        return hook

    def gather(found: ExpertInputs) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        return lambda module, args, kwargs: found.add(module, args, kwargs, model.inside)

    for name, module in modules.items():
        hooks.append(model.modules[module].register_forward_pre_hook(collect(name)))
    for module, found in inputs.items():
        hooks.append(model.modules[module].register_forward_pre_hook(gather(found), with_kwargs=True))
    try:
        model.run(windows, progress)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(map(len, windows))
    values = {name: (total / max(1, tokens)).float().cpu().numpy() for name, total in sums.items()}
    counts: dict[str, NDArray[np.float32]] = {}
    for name, module in (experts or {}).items():
        if inputs[module].counts is not None:
            values[name], counts[name] = _of_experts(name, inputs[module])
    bad = next((name for name, row in values.items() if not np.isfinite(row).all()), None)
    if bad is not None:
        raise OperatorError(f"the importance matrix of {bad} is not finite: the model overflows on this text")
    return Importance(values, tokens, (len(windows), max(map(len, windows), default=0)), source, counts)


def _of_experts(name: str, inputs: ExpertInputs) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean squared inputs, float32 [experts, columns], and tokens, float32 [experts]. An expert without tokens prefers
    no column."""
    sums, counts = (inputs.inner if "ffn_down" in name else inputs.outer).cpu(), inputs.counts.cpu()
    means = (sums / counts.clamp(min=1)[:, None]).float().numpy()
    means[counts.numpy() == 0] = 1
    return means, counts.float().numpy()


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
    for name, rows in sorted(importance.values.items()):
        means = np.atleast_2d(rows)
        counts = importance.counts.get(name, np.full(len(means), importance.tokens, np.float32)).reshape(-1, 1)
        sums = np.where(counts > 0, means * counts, 0).astype(np.float32)
        tensors += [_matrix(f"{name}.in_sum2", sums), _matrix(f"{name}.counts", counts)]
    with atomic_file(path) as file:
        write_file(file, keys, tensors)


def _matrix(name: str, rows: NDArray[np.float32]) -> tuple[NewTensor, list[Piece]]:
    """float32 [experts, columns]."""
    return NewTensor(name, (rows.shape[1], rows.shape[0]), TYPES["F32"].id, rows.nbytes), [
        ready(rows.astype("<f4"), rows.size)
    ]


def importance_keys(importance: Importance, file_name: str) -> dict[str, Value]:
    """llama.cpp's keys about the importance matrix that a file was quantized with; `file_name` is its own."""
    return {
        "quantize.imatrix.file": text_value(file_name),
        "quantize.imatrix.dataset": text_value(importance.source),
        "quantize.imatrix.entries_count": uint32_value(len(importance.values)),
        "quantize.imatrix.chunks_count": uint32_value(importance.windows[0]),
    }


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
        tensors = {t.name: np.atleast_2d(np.asarray(t.data, np.float32)) for t in gguf.GGUFReader(path).tensors}
        names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
        counts = {name: tensors[f"{name}.counts"].reshape(-1, 1) for name in names}
        wrong = [name for name in names if len(counts[name]) != len(tensors[f"{name}.in_sum2"])]
        if wrong:
            raise ValueError(f"{wrong[0]} has {len(counts[wrong[0]])} counts")
        field = gguf.GGUFReader(path).get_field("imatrix.datasets")
        source = str(field.contents()[0]) if field is not None else path.name
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise OperatorError(f"{path} is not a GGUF importance matrix: {printable(str(error), 200)}") from error
    sums = {name: tensors[f"{name}.in_sum2"] for name in names}
    # A tensor or expert without counts gets equal weights in every column, as in llama.cpp.
    with np.errstate(all="ignore"):  # the result is checked below
        means = {n: np.where(counts[n] > 0, sums[n] / counts[n], np.float32(1)) for n in names}
    values = {n: rows[0] if len(rows) == 1 else rows for n, rows in means.items()}
    sound = all(
        np.isfinite(counts[n]).all() and np.isfinite(row).all() and (row >= 0).all() for n, row in values.items()
    )
    if not values or not sound:
        raise OperatorError(
            f"{path} contains no importances, or negative or non-finite ones", "make it with llama-imatrix"
        )
    chunks, size = (header.scalar(f"imatrix.{name}", 0) for name in ("chunk_count", "chunk_size"))
    windows = (chunks or 1, size) if isinstance(chunks, int) and isinstance(size, int) else (1, 0)
    per_expert = {name: counts[name].ravel() for name in names if len(counts[name]) > 1}
    return Importance(values, int(max(found.max() for found in counts.values())), windows, source, per_expert)
