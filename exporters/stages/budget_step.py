"""Plans the file of `target_bits`: measures what each tensor type costs, chooses the types, writes them as a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.files import write_text
from engines.llama.library import NativeError
from engines.llama.quantizer import Quantizer, open_quantizer
from engines.llama.rates import measure_rates
from exporters.budget.choose import choose
from exporters.budget.measure import Meter, candidates, first_windows, matrices, probe_type, sampled_rows
from exporters.budget.plan import budget_of, recipe_text, target_plan
from exporters.gguf.quant_types import FilePlan, Shape
from exporters.reference.reference_model import load_reference
from exporters.stages.export_job import Export
from exporters.stages.importance_step import ImportanceRequest, calibration_data
from recipes.file_types import label_of
from recipes.problems import OperatorError
from recipes.quantities import exact

_NOT_REPEATED = {
    "name",
    "kind",
    "target_bits",
    "target_tokens",
    "tensor_types",
    "file_types",
    "imatrix",
    "gate",
    "retry",
}


def plan_target(export: Export, target_bits: float, request: ImportanceRequest) -> FilePlan:
    """Choose the types of a file with this many bits per weight, and record how.

    Args:
        export: its importance matrix is measured.
        target_bits: of the file.
        request: the held-out text of the importance matrix.

    Raises:
        OperatorError: the kernels for the types are missing.
        StopRequested: the operator asked to stop.
    """
    ctx, model, importance = export.ctx, export.model, export.importance
    assert importance is not None, "target_bits measures an importance matrix"
    own = ctx.stage.tensor_types
    ctx.phase(f"measuring tensor types for {exact(target_bits)} bits")
    tried = {
        shape: candidates(shape, target_bits, own, weighted=shape.name in importance.values)
        for shape in matrices(model)
    }
    names = {name for found in tried.values() for name in found}
    try:
        quantizer, notes = open_quantizer(names, export.threads, ctx.stage.quantizer, ctx.stage.llama_cpp)
    except NativeError as error:
        raise OperatorError(
            f"target_bits — the types of {exact(target_bits)} bits cannot be written on this machine: {error}",
            "install the export extra",
        ) from error
    for note in notes:
        ctx.warn(note)
    try:
        windows = first_windows(calibration_data(model, request).windows, ctx.stage.target_tokens)
        network = load_reference(model.folder, export.threads, weights=model.weights)
        meter = Meter(model, network, windows, quantizer)
        seconds = _seconds(export, quantizer, tried, target_bits, meter.pass_s)
        total, done = sum(seconds.values()), 0.0

        def advance(name: str) -> None:
            nonlocal done
            done += seconds[name]
            ctx.progress(done, total, "seconds of work")

        measured = meter.measure(target_bits, importance, advance, own)
        chosen = choose(measured.options, budget_of(model, target_bits))
        types = {name: option.type for name, option in chosen.items()}
        kl = meter.kl_of(types, importance)
    finally:
        quantizer.close()
    plan = target_plan(model, target_bits, types)
    recipe = ctx.out / f"{label_of(target_bits)}.toml"
    write_text(recipe, recipe_text(_fields(export, plan), types, _comment(target_bits, plan)))
    export.record["target"] = {
        "bits": target_bits,
        "file_type": plan.title,
        "recipe": recipe.name,
        "tokens": meter.positions,
        "mean_kl": kl,
        "expected_mean_kl": sum(option.error for option in chosen.values()),
        "tensors": {
            name: {
                "type": option.type,
                "probe": measured.probe[name],
                "probe_kl": measured.probe_kl[name],
                "expected_kl": {other.type: other.error for other in measured.options[name]},
            }
            for name, option in chosen.items()
        },
    }
    return plan


def _seconds(
    export: Export, quantizer: Quantizer, tried: Mapping[Shape, list[str]], target_bits: float, pass_s: float
) -> dict[str, float]:
    """Estimated seconds of each matrix: one pass over the text, one type on all rows and the others on some."""
    names = sorted({name for found in tried.values() for name in found})
    rates = measure_rates(quantizer, names, export.threads, importance=True)
    found = {}
    for shape, types in tried.items():
        some, probe = len(sampled_rows(shape)) * shape.columns, probe_type(types, target_bits)
        work = shape.rows * shape.columns / rates[probe] + sum(some / rates[name] for name in types if name != probe)
        found[shape.name] = pass_s + work
    return found


def _fields(export: Export, plan: FilePlan) -> dict[str, Any]:
    """The fields of an export stage that writes the file again."""
    stage, inputs = export.ctx.stage, export.ctx.inputs
    given = stage.model_dump(exclude_defaults=True, exclude=_NOT_REPEATED)
    places = {name: str(item.path) if item.path is not None else item.name for name, item in inputs.items()}
    kept = {name: places.get(name, value) for name, value in given.items() if name != "adapters"}
    first = {"name": "gguf", "kind": "export", "model": places["model"]}
    return {**first, **kept, "file_types": [plan.file_type], "imatrix": "always"}


def _comment(target_bits: float, plan: FilePlan) -> str:
    return (
        f"{exact(target_bits)} bits per weight, chosen by measured errors: the same tensors as {plan.title}. "
        "For a GGUF file: cockpit quantize FILE --tensor-types THIS --imatrix imatrix.gguf"
    )
