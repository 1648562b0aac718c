"""Computes the importance matrix of an export from held-out text, and chooses the file types that use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.gguf.importance import Importance, compute_importance
from exporters.gguf.write import Model
from exporters.proof.parity_data import read_calibration_data, read_parity_data
from exporters.proof.reference_model import load_reference
from recipes.file_types import FILE_TYPES

IMPORTANCE_FILE = "imatrix.gguf"


@dataclass(frozen=True)
class ImportanceRequest:
    """The input: `tokens` of held-out text in windows of `max_length`, from documents that the comparison skips."""

    data: Path | None
    tokens: int
    parity_positions: int
    max_length: int
    threads: int


def types_to_weigh(model: Model, file_types: Sequence[str], wish: str) -> set[str]:
    """The file types that are written with an importance matrix.

    Args:
        model: its widths decide which tensors need one.
        file_types: the types to write.
        wish: "always" selects all types that use one, "auto" those that require one. A recipe with "never" has no type
            that requires one.
    """
    if wish == "always":
        return {name for name in file_types if FILE_TYPES[name].importance != "ignored"}
    return {name for name in file_types if model.plan(name).needs_importance}


def measure_importance(
    model: Model, request: ImportanceRequest, progress: Callable[[float, float], None]
) -> Importance:
    """Run the model in float32 over held-out text.

    Raises:
        OperatorError: there is no held-out text besides the comparison's.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
    compared = None
    if request.parity_positions:
        compared = read_parity_data(
            request.data, tokenizer, positions=request.parity_positions, max_length=request.max_length
        )
    data = read_calibration_data(
        request.data, tokenizer, tokens=request.tokens, max_length=request.max_length, besides=compared
    )
    network = load_reference(model.folder, request.threads, weights=model.weights)
    inside = [shape.name for shape in model.shapes if shape.layer is not None and shape.dimensions == 2]
    own_name = model.architecture.own_name
    modules = {name: own_name(model.sources[name].name).removesuffix(".weight") for name in inside}
    done = 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, data.positions)

    source = f"{data.source} {data.split}".strip()
    return compute_importance(network, modules, data.windows, source, advance)
