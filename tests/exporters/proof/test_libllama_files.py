"""Files that libllama's own quantizer writes are proven byte for byte.

Runs with --thorough, where COCKPIT_LLAMA_CPP names a complete build of llama.cpp.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.llama.library import KERNELS_PLACES, LLAMA_CPP_VARIABLE
from engines.llama.quantizer import KernelQuantizer
from exporters.gguf.importance import Importance
from exporters.gguf.write import Model, read_model, write_gguf
from exporters.proof.audit import prove
from exporters.proof.byte_proof import ByteProver
from recipes.file_types import FILE_TYPES, QUANTIZED
from tests.exporters.small_models import build_model

pytestmark = [pytest.mark.torch, pytest.mark.thorough]
PROGRAM = Path(__file__).resolve().parents[3] / "bench" / "libllama_quantize.py"
TYPES = [name for name in QUANTIZED if not FILE_TYPES[name].ternary and name != "MXFP4_MOE"]


def libraries() -> Path | None:
    """The folder of a complete libllama in the operator's llama.cpp."""
    place = os.environ.get(LLAMA_CPP_VARIABLE)
    folders = [Path(place) / part for part in KERNELS_PLACES] if place else []
    return next((folder for folder in folders if any(folder.glob("libllama*.so"))), None)


@dataclass
class Place:
    """A model, its F32 and F16 files, an importance matrix, and what derives bytes."""

    model: Model
    sources: dict[str, Path]
    importance: Importance
    weights: Path
    quantizer: KernelQuantizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("libllama")
    fields: dict[str, Any] = {
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    model = read_model(build_model(root / "model", tokenizer, tie_word_embeddings=False, **fields))
    sources = {}
    for name in ("F32", "F16"):
        sources[name] = root / f"{name}.gguf"
        write_gguf(model, model.plan(name), sources[name], None)
    rng = np.random.default_rng(11)
    inside = [shape for shape in model.shapes if shape.layer is not None and shape.dimensions == 2]
    values = {shape.name: rng.gamma(1.0, 2.0, shape.columns).astype(np.float32) for shape in inside}
    np.savez(root / "weights.npz", allow_pickle=False, **values)
    with KernelQuantizer(1) as quantizer:
        yield Place(model, sources, Importance(values, 1, (1, 1), "numbers"), root / "weights.npz", quantizer)


@pytest.mark.parametrize("source", ["F32", "F16"])
@pytest.mark.parametrize("file_type", TYPES)
def test_every_byte_of_a_file_of_libllama_is_derived(file_type: str, source: str, place: Place, tmp_path: Path) -> None:
    folder = libraries()
    if folder is None:
        pytest.skip(f"{LLAMA_CPP_VARIABLE} names no build of llama.cpp with its libraries")
    needed = bool(place.model.plan(file_type).needs_importance)
    theirs, number = tmp_path / "theirs.gguf", str(FILE_TYPES[file_type].id)
    matrix = [str(place.weights)] if needed else []
    command = [sys.executable, str(PROGRAM), str(folder), str(place.sources[source]), str(theirs), number, *matrix]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    importance = place.importance.values if needed else None
    with ByteProver(1, quantizer=place.quantizer) as prover:
        proofs = prove(theirs, place.model.folder, prover, importance=importance)
    assert proofs.findings == []
    assert (proofs.bytes.equal, proofs.bytes.by_value) == (proofs.bytes.tensors, 0)
    assert proofs.bytes.through == (source if source == "F16" else None)
