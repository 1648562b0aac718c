"""Converts the adapters of an export with llama.cpp's own script, for families that Cockpit does not support."""

from __future__ import annotations

from pathlib import Path

from engines.context import StageFailedError
from engines.files import atomic_path
from engines.llama.gguf_file import read_gguf
from exporters.gguf.adapter import AdapterPlan, check_kinds
from exporters.hf_model.model_folder import local_folder
from exporters.lora.adapter import Adapter, read_adapter
from exporters.lora.base_check import check_base
from exporters.process.foreign_program import ForeignProgramError
from exporters.stages.adapter_names import adapter_names, metric_key
from exporters.stages.export_job import AdapterFile, Export
from exporters.upstream.script import ADAPTER_SCRIPT, Converter
from recipes.problems import OperatorError, printable


def convert_adapters(export: Export, converter: Converter) -> None:
    """Convert every adapter of the stage; `export.adapters` gets them.

    Raises:
        OperatorError: an adapter belongs to another base model, or the script cannot express it.
        StageFailedError: the script failed, or did not write a complete file.
    """
    ctx = export.ctx
    inputs = [ctx.inputs[name] for name in ctx.inputs if name.startswith("adapters[")]
    found = [(given, local_folder(given)) for given in inputs]
    for (given, folder), name in zip(found, adapter_names(found), strict=True):
        for warning in check_base(export.model.folder, ctx.inputs["model"].manifest_sha256, folder):
            ctx.warn(warning)
        adapter = read_adapter(folder)
        _check(adapter)
        ctx.phase(f"writing {name} with {ADAPTER_SCRIPT}")
        path = export.adapter_path(name, ctx.stage.adapter_type)
        _convert(export, converter, folder, path)
        tensors = read_gguf(path).tensors
        if len(tensors) != 2 * len(adapter.changes):
            raise StageFailedError(
                f"{ADAPTER_SCRIPT} wrote {len(tensors)} matrices of {name}; the adapter has {2 * len(adapter.changes)}"
            )
        values = sum(tensor.rows * tensor.columns for tensor in tensors.values())
        plan = AdapterPlan(adapter.changes, float(adapter.config["lora_alpha"]), values)
        size = path.stat().st_size
        export.adapters.append(AdapterFile(name, folder, given.manifest_sha256, plan, path, size))
        export.metrics[f"{metric_key(name)}_bytes"] = float(size)


def _check(adapter: Adapter) -> None:
    """Refuse what llama.cpp's script drops or scales differently."""
    check_kinds(adapter)
    alpha = float(adapter.config["lora_alpha"])
    for change in adapter.changes.values():
        assert change.a is not None
        if change.scale != alpha / change.a.shape[0]:
            raise OperatorError(
                f"{adapter.folder}: {printable(change.module, 200)} has a scale of its own (rank pattern, alpha "
                f"pattern or rsLoRA), which {ADAPTER_SCRIPT} does not convert",
                "merge the adapter into its base model instead: set adapter",
            )


def _convert(export: Export, converter: Converter, folder: Path, path: Path) -> None:
    ctx = export.ctx
    try:
        with atomic_path(path, ctx.work / f"partial-{path.name}") as partial:
            log = ctx.work / f"{ADAPTER_SCRIPT}.log"
            converter.convert_adapter(
                export.model.folder, folder, ctx.stage.adapter_type, partial, log, lambda: ctx.progress(0, 1, "files")
            )
            read_gguf(partial)
    except ForeignProgramError as error:
        print(error.output, flush=True)  # noqa: T201 - the stage's console.log has all of it
        raise StageFailedError(f"{ADAPTER_SCRIPT} {error}") from error
    except OperatorError as error:
        raise StageFailedError(f"{ADAPTER_SCRIPT} did not write a complete file: {error}") from error
