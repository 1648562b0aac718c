"""Proves the bytes and the meaning of an export's files; their behaviour is compared in `compare_step`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engines.context import StageFailedError
from engines.llama.library import NativeError
from exporters.gguf.importance import IMPORTANCE_FILE, load_importance
from exporters.gguf.quant_types import FilePlan
from exporters.proof.audit import Proofs, prove
from exporters.proof.audit_tokens import load_tokenizer
from exporters.proof.byte_proof import ByteProver
from exporters.stages.export_job import Export

Progress = Callable[[int], None]


@contextmanager
def open_prover(export: Export) -> Iterator[ByteProver]:
    """One prover for all files of an export."""
    stage = export.ctx.stage
    written_by_kernels = "llama_quantize" not in export.record and stage.quantizer != "numpy"
    with ByteProver(
        export.threads, rows=stage.byte_proof, same_kernels=written_by_kernels, llama_cpp=stage.llama_cpp
    ) as prover:
        prover.prepare({choice.type for plan in export.plans for choice in plan.choices})
        yield prover


def prove_file(export: Export, plan: FilePlan, prover: ByteProver, tokenizer: Any, progress: Progress) -> Proofs:
    """Prove one file; its tables for parity.json are `Proofs.record()`.

    Args:
        export: the files were written.
        plan: the file.
        prover: from `open_prover`.
        tokenizer: the model's; None if it cannot be loaded.
        progress: called with the number of values compared since the last call.

    Raises:
        KeyError: the audit does not support the model's family.
        StageFailedError: the kernels failed.
    """
    model, matrix = export.model, export.ctx.out / IMPORTANCE_FILE
    # The values come from the importance matrix's file, as other readers of it get them.
    importance = load_importance(matrix).values if plan.weighted and matrix.is_file() else None
    try:
        return prove(
            export.path(plan),
            model.folder,
            prover,
            config=model.config,
            weights=model.weights,
            importance=importance,
            file_type=plan.file_type,
            tokenizer=tokenizer,
            progress=progress,
        )
    except NativeError as error:
        raise StageFailedError(f"the byte proof failed: {error}") from error


def prove_files(export: Export) -> dict[str, Proofs]:
    """Prove every file, with progress; by file name."""
    ctx, found = export.ctx, {}
    total = sum(choice.shape.rows * choice.shape.columns for plan in export.plans for choice in plan.choices)
    done = 0

    def advance(values: int) -> None:
        nonlocal done
        done += values
        ctx.progress(done, total, "values")

    tokenizer = load_tokenizer(export.model.folder)
    with open_prover(export) as prover:
        for plan in export.plans:
            ctx.phase(f"proving the bytes of {plan.title}")
            proofs = found[export.path(plan).name] = prove_file(export, plan, prover, tokenizer, advance)
            export.metrics[f"{plan.title.lower()}_bytes_proof_s"] = proofs.bytes.seconds
            for note in proofs.bytes.notes:
                ctx.warn(f"{plan.title}: {note}")
    return found
