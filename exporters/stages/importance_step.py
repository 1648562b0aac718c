"""Computes the importance matrix of an export from held-out text, and chooses the file types that use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engines.files import file_sha256
from exporters.gguf.importance import IMPORTANCE_FILE, Importance, compute_importance, load_importance, save_importance
from exporters.gguf.own_types import with_tensor_types
from exporters.gguf.write import Model
from exporters.hf_model.model_folder import local_folder
from exporters.proof.parity_data import ParityData, read_calibration_data, read_parity_data
from exporters.reference.streamed_model import StreamedModel
from exporters.stages.export_job import Export
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
    model: Model, request: ImportanceRequest, progress: Callable[[float, float], None], names: Names | None = None
) -> Importance:
    """Run the model in float32 over held-out text; its weights are read layer by layer.

    Args:
        model: the model.
        request: what to run it on.
        progress: called with the tokens done and their number.
        names: of the folder's modules by GGUF tensor; the model's own table by default.

    Raises:
        OperatorError: there is no held-out text besides the comparison's.
    """
    data = calibration_data(model, request)
    network = StreamedModel(model.folder, model.weights, request.threads)
    found = _in_network(network, own_names(model) if names is None else names)
    done = 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, data.positions)

    source = f"{data.source} {data.split}".strip()
    return compute_importance(network, found.layers, data.windows, source, advance, found.experts)


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


@dataclass(frozen=True)
class Names:
    """Modules of the folder by the name of the GGUF tensor: linear layers, and the modules with a layer's experts."""

    layers: Mapping[str, str]
    experts: Mapping[str, str]


def own_names(model: Model) -> Names:
    """The modules of a family that Cockpit has a table of."""
    inside = {shape.name: shape.dimensions for shape in model.shapes if shape.layer is not None}
    first = {name: model.sources[name].names[0] for name in inside if model.sources[name].names}
    layers = {name: first[name].removesuffix(".weight") for name, dimensions in inside.items() if dimensions == 2}
    experts = {name: experts_of(first[name]) for name, dimensions in inside.items() if dimensions == 3}
    return Names({name: module for name, module in layers.items() if EXPERTS not in f"{module}."}, experts)


def _in_network(network: StreamedModel, names: Names) -> Names:
    """The modules as the loaded model has them: transformers renames some when it loads a folder. Unknown names are
    left out."""

    def found(beginning: str) -> str:
        return (network.parameter_of(beginning) or "").rpartition(".")[0]

    layers = {name: found(f"{module}.weight") for name, module in names.layers.items()}
    experts = {name: found(f"{module}.") for name, module in names.experts.items()}
    return Names(
        {name: module for name, module in layers.items() if module in network.modules},
        {name: module for name, module in experts.items() if module in network.modules},
    )


EXPERTS = ".experts."


def experts_of(name: str) -> str:
    """The module with a layer's experts, from the name of a tensor in it."""
    return name.partition(EXPERTS)[0] + EXPERTS.rstrip(".")


def measure_for(export: Export, names: Names | None = None) -> Importance:
    """Measure an export's importance matrix, and write it beside the files."""
    ctx, stage = export.ctx, export.ctx.stage
    ctx.phase("importance matrix")

    def advance(done: float, total: float) -> None:
        ctx.progress(done, total, "tokens")

    importance = measure_importance(export.model, importance_request(export), advance, names)
    path = ctx.out / IMPORTANCE_FILE
    save_importance(importance, path)
    # The file stores float32 sums. The kernels get the values that other readers of the file get.
    importance = replace(importance, values=load_importance(path).values)
    if importance.tokens < stage.imatrix_tokens:
        ctx.warn(
            f"imatrix_tokens — the held-out text has only {importance.tokens} of the {stage.imatrix_tokens} requested "
            "tokens; using those"
        )
    export.metrics["imatrix_tokens"] = float(importance.tokens)
    export.record["imatrix"] = {
        "file": path.name,
        "sha256": file_sha256(path),
        "tokens": importance.tokens,
        "source": importance.source,
    }
    return importance


def importance_request(export: Export) -> ImportanceRequest:
    """The input of an export's importance matrix."""
    ctx, stage = export.ctx, export.ctx.stage
    length = min(stage.max_length, int(export.model.config["max_position_embeddings"]))
    folder = local_folder(ctx.inputs["data"]) if "data" in ctx.inputs else None
    return ImportanceRequest(folder, stage.imatrix_tokens, stage.parity_positions, length, export.threads)
