"""Every kind of fault that is planted in a correct file is found and named, in F16 and in Q4_K_M."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.llama.quantizer import KernelQuantizer
from exporters.gguf.write import Model, read_model, write_gguf
from exporters.proof.audit import prove
from exporters.proof.byte_proof import ByteProver
from tests.exporters.proof.planted import FAULTS, HEADS, KV_HEADS, Content, read_content, weights, write_content
from tests.exporters.small_models import build_byte_level_tokenizer, build_model

pytestmark = pytest.mark.torch
TYPES = ("F16", "Q4_K_M")
SMALL: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 1024, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128,
    "attention_factor": 1.3,
}  # fmt: skip


@dataclass
class Place:
    """The models with their correct files, and one kernel process for all proofs."""

    folder: Path
    models: dict[str, Model]
    correct: dict[tuple[str, str], Content]
    quantizer: KernelQuantizer
    prover: ByteProver
    tokenizers: dict[str, Any]

    def write(self, model: Model, file_type: str, path: Path) -> Path:
        write_gguf(model, model.plan(file_type), path, self.quantizer)
        return path

    def findings(self, path: Path, name: str, file_type: str) -> list[str]:
        folder, tokenizer = self.models[name].folder, self.tokenizers[name]
        return prove(path, folder, self.prover, file_type=file_type, tokenizer=tokenizer).findings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Iterator[Place]:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("planted")
    words = build_byte_level_tokenizer(folder / "words")
    build_model(folder / "llama", tokenizer, rope_parameters=LLAMA3, attention_bias=True, **SMALL)
    build_model(folder / "qwen", words, family="Qwen2", rope_parameters=YARN, **SMALL)
    models = {name: read_model(folder / name) for name in ("llama", "qwen")}
    tokenizers = {name: AutoTokenizer.from_pretrained(folder / name, local_files_only=True) for name in models}
    with KernelQuantizer(1) as quantizer, ByteProver(1, quantizer=quantizer) as prover:
        made = Place(folder, models, {}, quantizer, prover, tokenizers)
        for name in models:
            for file_type in TYPES:
                path = made.write(models[name], file_type, folder / f"{name}-{file_type}.gguf")
                made.correct[name, file_type] = read_content(path)
        yield made


@pytest.mark.parametrize("file_type", TYPES)
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_the_file_without_a_fault_has_no_finding(name: str, file_type: str, place: Place, tmp_path: Path) -> None:
    path = write_content(place.correct[name, file_type], tmp_path / "m.gguf")
    assert path.read_bytes() == (place.folder / f"{name}-{file_type}.gguf").read_bytes()
    assert place.findings(path, name, file_type) == []


@pytest.mark.parametrize("file_type", TYPES)
@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found_and_named(kind: str, file_type: str, place: Place, tmp_path: Path) -> None:
    fault = FAULTS[kind]
    path = tmp_path / "m.gguf"
    if fault.spoil is not None:
        place.write(fault.spoil(place.models[fault.model]), file_type, path)
    else:
        correct = place.correct[fault.model, file_type]
        content = Content(dict(correct.keys), {n: (d, k, r.copy()) for n, (d, k, r) in correct.tensors.items()})
        fault.change(content)
        write_content(content, path)
    findings = place.findings(path, fault.model, file_type)
    assert any(fault.named in finding for finding in findings), findings


def test_a_sampled_proof_compares_some_rows_of_every_tensor(place: Place, tmp_path: Path) -> None:
    path = place.folder / "llama-Q4_K_M.gguf"
    content = read_content(path)
    FAULTS["rows reversed"].change(content)
    folder, tokenizer = place.models["llama"].folder, place.tokenizers["llama"]
    with ByteProver(1, rows="sampled", same_kernels=True, quantizer=place.quantizer) as prover:
        right = prove(path, folder, prover, tokenizer=tokenizer)
        wrong = prove(write_content(content, tmp_path / "m.gguf"), folder, prover, tokenizer=tokenizer)
    assert (right.findings, right.bytes.rows, right.bytes.equal) == ([], "sampled", right.bytes.tensors)
    assert right.bytes.compared_bytes < path.stat().st_size / 10
    assert [finding.partition(" differs")[0] for finding in wrong.findings] == ["tensor blk.0.ffn_up.weight: row 0"]


def test_kernels_of_another_build_are_said_and_compared_by_value(place: Place, tmp_path: Path) -> None:
    """Scales that differ in their last bits, in every matrix, stand in for another build's rounding."""
    model = place.models["llama"]
    path = place.write(weights("_proj", lambda values: values * np.float32(1 + 2e-4))(model), "Q4_K_M", tmp_path / "m")
    with ByteProver(1, quantizer=place.quantizer) as prover:
        proof = prove(path, model.folder, prover, tokenizer=place.tokenizers["llama"]).bytes
    assert [finding for finding in proof.findings if ".bias" not in finding] == []
    assert proof.by_value > 10
    assert "kernels of another build wrote Q4_K, Q6_K" in proof.notes[-1]
    with ByteProver(1, same_kernels=True, quantizer=place.quantizer) as prover:
        own = prove(path, model.folder, prover, tokenizer=place.tokenizers["llama"]).bytes
    assert len(own.findings) >= proof.by_value, "what Cockpit's kernels wrote has no such excuse"


def test_there_are_more_than_forty_kinds(place: Place) -> None:
    assert len(FAULTS) >= 40
    assert {fault.model for fault in FAULTS.values()} == set(place.models)
