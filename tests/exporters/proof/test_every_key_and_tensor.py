"""No key and no tensor of any family's file may change without a finding that names it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines.llama.gguf_file import ARRAY, STRING, GgufFile, Value, read_gguf
from engines.llama.gguf_write import bool_value, float32_value, text_list, text_value
from engines.llama.quantizer import KernelQuantizer
from exporters.gguf.write import Model, read_model, write_gguf
from exporters.proof.audit import prove
from exporters.proof.audit_keys import audit_keys
from exporters.proof.audit_tokens import audit_tokens, load_tokenizer
from exporters.proof.audit_vocab import texts_of
from exporters.proof.byte_proof import ByteProver
from tests.exporters.family_models import FAMILIES
from tests.exporters.proof.planted import read_content, write_content

pytestmark = pytest.mark.torch
FEW = ("LlamaForCausalLM", "Gemma3ForCausalLM", "GraniteForCausalLM")
"""Families of the ordinary suite; the others run with --thorough."""
EVERY_FAMILY = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in FEW else [pytest.mark.thorough]) for name in FAMILIES]
)
FREE = (
    "general.name", "general.basename", "general.finetune", "general.type", "general.size_label", "general.license",
    "general.quantization_version", "general.alignment", "general.version",
    "tokenizer.ggml.pre", "tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap",
)  # fmt: skip
"""Keys that change nothing that a runtime computes with models of a SentencePiece tokenizer."""
FREE_OF_BYTES = ("tokenizer.ggml.add_space_prefix", "tokenizer.ggml.bos_token_id")
"""Likewise, with the byte-level tokenizer of the family that has one, which begins no text with a token."""


@dataclass
class Files:
    """The families' models and their correct files."""

    root: Path
    tokenizer: Path
    quantizer: KernelQuantizer
    made: dict[str, tuple[Model, Any]]

    def of(self, family: str) -> tuple[Model, Any]:
        if family not in self.made:
            folder = FAMILIES[family](self.root / family, self.tokenizer)
            self.made[family] = (read_model(folder), load_tokenizer(folder))
        return self.made[family]

    def written(self, family: str, file_type: str) -> Path:
        path = self.root / f"{family}-{file_type}.gguf"
        if not path.is_file():
            model = self.of(family)[0]
            write_gguf(model, model.plan(file_type), path, self.quantizer)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Iterator[Files]:
    with KernelQuantizer(1) as quantizer:
        yield Files(tmp_path_factory.mktemp("families"), tokenizer, quantizer, {})


@EVERY_FAMILY
def test_a_changed_key_is_named(family: str, files: Files) -> None:
    model, tokenizer = files.of(family)
    file = read_gguf(files.written(family, "F16"))

    def findings(keys: dict[str, Value]) -> list[str]:
        changed = GgufFile(file.path, keys, file.tensors)
        found = audit_keys(changed, model.config, "F16")
        return found + audit_tokens(changed, model.folder, model.config, tokenizer)

    assert findings(file.keys) == []
    unnoticed = []
    free = (*FREE, *(FREE_OF_BYTES if file.scalar("tokenizer.ggml.model") == "gpt2" else ()))
    for key, value in file.keys.items():
        found = [] if key in free else findings({**file.keys, key: changed_value(value)})
        if key not in free and not any(key in finding for finding in found):
            unnoticed.append((key, found))
    assert unnoticed == []


def changed_value(value: Value) -> Value:
    """Another value of the same kind."""
    if value.kind == ARRAY:
        texts = texts_of(value)
        if texts:
            return text_list([texts[1], texts[0], *texts[2:]])
        raw = bytearray(value.raw)
        raw[-2] ^= 0x40
        raw[12] ^= 1
        return Value(ARRAY, bytes(raw), None)
    if value.kind == STRING:
        return text_value(f"{value.scalar}x")
    if isinstance(value.scalar, bool):
        return bool_value(not value.scalar)
    if isinstance(value.scalar, float):
        return float32_value(value.scalar * 1.5 + 0.25)
    assert isinstance(value.scalar, int)
    return Value(value.kind, struct.pack("<I", value.scalar + 1), value.scalar + 1)


@pytest.mark.parametrize("file_type", ["F16", "Q4_K_M"])
@EVERY_FAMILY
def test_one_bit_of_any_tensor_is_found(family: str, file_type: str, files: Files, tmp_path: Path) -> None:
    model, tokenizer = files.of(family)
    path = files.written(family, file_type)
    content = read_content(path)
    with ByteProver(1, same_kernels=True, quantizer=files.quantizer) as prover:

        def found(at: Path) -> list[str]:
            return prove(at, model.folder, prover, config=model.config, tokenizer=tokenizer).bytes.findings

        assert found(path) == []
        for number, (name, (dimensions, kind, rows)) in enumerate(content.tensors.items()):
            spoilt = rows.copy()
            spoilt.reshape(-1)[(number * 7919) % spoilt.size] ^= 1 << number % 7
            content.tensors[name] = (dimensions, kind, spoilt)
        findings = found(write_content(content, tmp_path / "spoilt.gguf"))
    named = [name for name in content.tensors if any(f"tensor {name}" in finding for finding in findings)]
    assert named == list(content.tensors)


@EVERY_FAMILY
def test_a_missing_tensor_is_named(family: str, files: Files, tmp_path: Path) -> None:
    model, tokenizer = files.of(family)
    content = read_content(files.written(family, "F16"))
    first = [name for name in content.tensors if not name.startswith("blk.") or name.startswith("blk.0.")]
    for name in first:
        del content.tensors[name]
    path = write_content(content, tmp_path / "m.gguf")
    with ByteProver(1, quantizer=files.quantizer) as prover:
        proofs = prove(path, model.folder, prover, config=model.config, tokenizer=tokenizer)
    assert {f"tensor {name} is missing" for name in first} <= set(proofs.bytes.findings)


@pytest.mark.parametrize("file_type", ["F16", "Q4_K_M"])
def test_experts_in_another_order_are_named(file_type: str, files: Files, tmp_path: Path) -> None:
    model, tokenizer = files.of("Qwen3MoeForCausalLM")
    content = read_content(files.written("Qwen3MoeForCausalLM", file_type))
    name = "blk.0.ffn_up_exps.weight"
    rows = content.rows(name)
    content.replace(name, rows.reshape(4, -1, rows.shape[1])[[0, 2, 1, 3]].reshape(rows.shape))
    with ByteProver(1, quantizer=files.quantizer) as prover:
        proofs = prove(
            write_content(content, tmp_path / "m.gguf"), model.folder, prover, config=model.config, tokenizer=tokenizer
        )
    (finding,) = proofs.findings
    assert finding.startswith(f"tensor {name}: row {len(rows) // 4} differs from model.layers.0.mlp.experts.1.up_proj")
