"""Writes the GGUF adapters of an export, and compares each over every file of the base model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from engines.files import file_sha256
from engines.llama.process import LlamaProcess
from exporters.gguf.adapter import plan_adapter, write_adapter
from exporters.hf_model.model_folder import local_folder
from exporters.lora.adapter import read_adapter
from exporters.lora.base_check import check_base
from exporters.lora.peft_folder import folder_for_peft
from exporters.lora.trained_model import trained_with
from exporters.proof.behaviour import adapter_limits, check_behaviour
from exporters.proof.parity import Reference, compare_each
from exporters.reference.adapted_model import adapted_model
from exporters.reference.streamed_model import StreamedModel
from exporters.stages.adapter_names import adapter_names, metric_key
from exporters.stages.export_job import AdapterFile, Export, report_comparison, to_trained


def plan_adapters(export: Export) -> list[AdapterFile]:
    """Read every adapter of the stage and map it to the base model's tensors.

    Raises:
        OperatorError: an adapter belongs to another base model, or cannot be a GGUF adapter.
    """
    ctx = export.ctx
    planned: list[AdapterFile] = []
    inputs = [ctx.inputs[name] for name in ctx.inputs if name.startswith("adapters[")]
    found = [(given, local_folder(given)) for given in inputs]
    for (given, folder), name in zip(found, adapter_names(found), strict=True):
        for warning in check_base(export.model.folder, ctx.inputs["model"].manifest_sha256, folder, beside=name):
            ctx.warn(warning)
        plan = plan_adapter(export.model, read_adapter(folder))
        path = export.adapter_path(name, ctx.stage.adapter_type)
        planned.append(AdapterFile(name, folder, given.manifest_sha256, plan, path, plan.bytes(ctx.stage.adapter_type)))
    return planned


def write_adapters(export: Export) -> None:
    """Write every adapter's file."""
    for item in export.adapters:
        export.ctx.phase(f"writing {item.name}")
        write_adapter(export.model, item.plan, item.path, export.ctx.stage.adapter_type)
        export.metrics[f"{_key(item)}_bytes"] = float(item.path.stat().st_size)


def compare_adapters(export: Export, reference: Reference, length: int, progress: Callable[[int], None]) -> None:
    """Compare base model and adapter in llama.cpp with both in transformers, for every accepted file of the base model.

    An adapter over a file with exact weights must give the adapted model; over the other files the distance is
    reported. So is the distance from what was trained, which is another model if the base was in 4 bits.
    """
    records = export.record["adapters"] = []
    for item in export.adapters:
        export.ctx.phase(f"reference with {item.name}")
        vocabulary = reference.logits.shape[1]
        adapter = folder_for_peft(item.folder, export.ctx.work / item.name)
        reference.compute(adapted_model(export.model.folder, export.threads, adapter, vocabulary), progress)
        references = [reference, *_four_bit_reference(export, item, reference, progress)]
        comparisons: list[dict[str, Any]] = []
        for plan in export.accepted:
            export.ctx.phase(f"comparing {plan.title} with {item.name}")
            with LlamaProcess(export.path(plan), length, export.threads, item.path) as llama:
                comparison, *from_trained = compare_each(references, llama, progress)
            alone = export.files[export.path(plan).name]
            limits = adapter_limits(alone["behaviour"], alone["quality"]["weights_mean_kl"])
            found = [f"over {plan.title}: {text}" for text in check_behaviour(comparison, limits)]
            export.refuse(item.path, "behaviour", found)
            record = {"file_type": plan.title, **comparison.record(), "limits": asdict(limits)}
            more = {"to_trained": from_trained[0].record()} if from_trained else {}
            comparisons.append({**record, "passed": not found, "problems": found, **more})
            kind = plan.title.lower()
            distance = to_trained("", from_trained[0] if from_trained else comparison)
            report_comparison(export, f"{_key(item)}_{kind}", f"{kind}+{item.name}", comparison, distance)
        records.append({**_describe(export, item), "over": comparisons})


def _four_bit_reference(
    export: Export, item: AdapterFile, reference: Reference, progress: Callable[[int], None]
) -> list[Reference]:
    """The distributions of the model that the training of an adapter has trained, if its base was in 4 bits."""
    trained = trained_with(export.model.folder, item.folder)
    if trained is None:
        return []
    export.ctx.phase(f"reference of the 4-bit base that {item.name} was trained on")
    found = Reference(export.ctx.work / "adapter-four-bit.f32", reference.windows, reference.logits.shape[1])
    found.compute(StreamedModel(export.model.folder, trained.weights(), export.threads), progress)
    return [found]


def _describe(export: Export, item: AdapterFile) -> dict[str, Any]:
    return {
        "name": item.name,
        "file": item.path.name,
        "type": export.ctx.stage.adapter_type,
        "bytes": item.path.stat().st_size,
        "sha256": file_sha256(item.path),
        "parameters": item.plan.parameters,
        "manifest_sha256": item.manifest_sha256,
    }


def _key(item: AdapterFile) -> str:
    return metric_key(item.name)
