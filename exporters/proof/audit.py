"""Proves what a finished GGUF file contains: its tensors' bytes, and the meaning of its keys and vocabulary.

Neither uses code of the writer. Both derive the expected content from config.json, the tokenizer's files and the source
tensors, and name the wrong key, token, tensor, row or byte. Behaviour (`exporters.proof.parity`) shows whether a file
answers like its model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.llama.gguf_file import read_gguf
from exporters.hf_model.model_folder import open_weights, read_settings
from exporters.hf_model.tensor_files import Weights
from exporters.hf_model.tied_head import with_own_head
from exporters.proof.audit_keys import audit_keys
from exporters.proof.audit_tensors import BytesProof, audit_tensors
from exporters.proof.audit_tokens import audit_tokens
from exporters.proof.byte_proof import ByteProver, Progress

MAX_FINDINGS = 20
"""Findings of one proof that are recorded."""


@dataclass
class MeaningProof:
    """The comparison of a file's keys and vocabulary by effective value. `keys` counts the file's keys."""

    keys: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Proofs:
    """The two proofs of one file."""

    bytes: BytesProof
    meaning: MeaningProof

    @property
    def findings(self) -> list[str]:
        """The first findings of both, the meaning's first."""
        return [*self.meaning.findings, *self.bytes.findings][:MAX_FINDINGS]

    def record(self) -> dict[str, Any]:
        """The tables `bytes` and `meaning` of a file in parity.json, as plain values."""
        return {"bytes": _table(self.bytes), "meaning": _table(self.meaning)}


def _table(proof: BytesProof | MeaningProof) -> dict[str, Any]:
    values = asdict(proof)
    found = values.pop("findings")
    return {"passed": not found, **values, "findings": found[:MAX_FINDINGS], "found": len(found)}


def prove(
    gguf: Path,
    folder: Path,
    prover: ByteProver,
    *,
    config: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    file_type: str | None = None,
    tokenizer: Any = None,
    progress: Progress = lambda _values: None,
) -> Proofs:
    """Prove one file against the model that it was converted from.

    Args:
        gguf: the finished file.
        folder: the model's folder.
        prover: derives the bytes; it may serve several files.
        config: its config, if it is not the folder's (adapters merged while writing).
        weights: its tensors, likewise.
        importance: the importance matrix that the file was written with, by tensor name, float32 [columns] or
            [experts, columns].
        file_type: the type that the file was written in; None if that is not known.
        tokenizer: the model's, if the caller has loaded it.
        progress: called with the number of values compared since the last call.

    Raises:
        KeyError: the audit does not support the model's family.
        NativeError: the kernels failed.
        OperatorError: the file is not a complete GGUF file, or the folder is not a model.
    """
    began = time.monotonic()
    file = read_gguf(gguf)
    found = dict(config if config is not None else read_settings(folder))
    tensors = weights if weights is not None else open_weights(folder)
    found = with_own_head(found, tensors)
    meaning = MeaningProof(len(file.keys))
    meaning.findings = [*audit_keys(file, found, file_type), *audit_tokens(file, folder, found, tokenizer)]
    meaning.seconds = time.monotonic() - began
    return Proofs(audit_tensors(file, found, tensors, prover, importance, progress), meaning)


def audit(
    gguf: Path, folder: Path, *, config: Mapping[str, Any] | None = None, weights: Weights | None = None
) -> list[str]:
    """The findings of `prove`, with a prover of its own."""
    with ByteProver(1) as prover:
        return prove(gguf, folder, prover, config=config, weights=weights).findings
