"""Computes the importance matrix of an export from held-out text, and chooses the file types that use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.gguf.importance import Importance, compute_importance
from exporters.gguf.own_types import with_tensor_types
from exporters.gguf.write import Model
from exporters.proof.parity_data import ParityData, read_calibration_data, read_parity_data
from exporters.reference.reference_model import load_reference
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError


@dataclass(frozen=True)
class ImportanceRequest:
    """The input: `tokens` of held-out text in windows of `max_length`, from documents that the comparison skips."""

    data: Path | None
    tokens: int
    parity_positions: int
    max_length: int
    threads: int


def types_to_weigh(
    model: Model, file_types: Sequence[str], wish: str, tensor_types: Mapping[str, str] | None = None
) -> set[str]:
    """The file types that are written with an importance matrix.

    Args:
        model: its widths decide which tensors need one.
        file_types: the types to write.
        wish: "always" selects all types that use one, "auto" those that require one. A recipe with "never" has no file
            type that requires one.
        tensor_types: the operator's own tensor types.

    Raises:
        OperatorError: with "never", an own tensor type requires one.
    """
    if wish == "always":
        return {name for name in file_types if FILE_TYPES[name].importance != "ignored"}
    plans = [with_tensor_types(model.plan(name), tensor_types or {}) for name in file_types]
    needing = {plan.file_type: plan.needs_importance for plan in plans if plan.needs_importance}
    if needing and wish == "never":
        first = next(iter(needing.values()))[0]
        raise OperatorError(
            f"imatrix — got never, but tensor_types stores {first.shape.name} in {first.type}, which requires an "
            "importance matrix; allowed: auto or always"
        )
    return set(needing)


def measure_importance(
    model: Model, request: ImportanceRequest, progress: Callable[[float, float], None]
) -> Importance:
    """Run the model in float32 over held-out text.

    Raises:
        OperatorError: there is no held-out text besides the comparison's.
    """
    data = calibration_data(model, request)
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


def calibration_data(model: Model, request: ImportanceRequest) -> ParityData:
    """The held-out text of an importance matrix.

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
    return read_calibration_data(
        request.data, tokenizer, tokens=request.tokens, max_length=request.max_length, besides=compared
    )
