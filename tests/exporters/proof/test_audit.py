"""A finished file with one place changed: the audit names the place, and the comparison with the model fails."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from engines.llama.gguf_file import read_gguf
from exporters.gguf.write import read_model, write_gguf
from exporters.hf_model.tensor_files import SafetensorsFolder, SafetensorsWriter
from exporters.proof.audit import audit
from recipes.file_types import FILE_TYPES, QUANTIZED
from recipes.problems import OperatorError
from tests.exporters.exporting import export, parity
from tests.exporters.small_models import build_byte_level_tokenizer, build_model, copy_folder

pytestmark = pytest.mark.torch
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "llama3": {"rope_parameters": LLAMA3},
    "mistral": {"family": "Mistral", "sliding_window": None},
    "qwen2": {"family": "Qwen2"},
    "qwen3 yarn": {"family": "Qwen3", "rope_parameters": {**YARN, "attention_factor": 1.3}, "head_dim": 64},
    "odd": {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 4},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Callable[[str], Path]:
    made: dict[str, Path] = {}
    bytes_ = build_byte_level_tokenizer(tmp_path_factory.mktemp("bpe"))

    def of(name: str) -> Path:
        if name not in made:
            words = bytes_ if name.startswith("qwen") else tokenizer
            made[name] = build_model(tmp_path_factory.mktemp("model"), words, **SHAPES[name])
        return made[name]

    return of


def written(folder: Path, path: Path, file_type: str = "F16") -> Path:
    model = read_model(folder)
    write_gguf(model, model.plan(file_type), path, None)
    return path


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16"])
def test_a_good_file_has_no_finding(name: str, file_type: str, models: Any, tmp_path: Path) -> None:
    folder = models(name)
    assert audit(written(folder, tmp_path / "m.gguf", file_type), folder) == []


ALSO_IN_USE = ("rope theta", "Q/K permute")
"""Faults of the ordinary suite that are planted in a whole export; the others run with --thorough."""
SLOW_TO_QUANTIZE = ("IQ1_S", "IQ1_M", "IQ2_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M")


@pytest.mark.parametrize(
    "file_type",
    [
        pytest.param(name, marks=[pytest.mark.thorough] if name in SLOW_TO_QUANTIZE else [])
        for name in QUANTIZED
        if not FILE_TYPES[name].ternary
    ],
)
def test_a_good_quantized_file_has_no_finding(file_type: str, models: Any, tmp_path: Path) -> None:
    from engines.llama.quantizer import KernelQuantizer
    from exporters.gguf.importance import Importance

    folder = models("tied")
    model = read_model(folder)
    inside = [shape for shape in model.shapes if shape.layer is not None and shape.dimensions == 2]
    importance = Importance({shape.name: np.ones(shape.columns, np.float32) for shape in inside}, 1, (1, 1), "ones")
    plan = model.plan(file_type, importance=True)
    with KernelQuantizer(1) as quantizer:
        write_gguf(model, plan, tmp_path / "m.gguf", quantizer, importance=importance)
    assert audit(tmp_path / "m.gguf", folder) == []


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def value_at(path: Path, key: str) -> int:
    """Where a key's value begins: after its name and its type."""
    name = struct.pack("<Q", len(key)) + key.encode()
    place = path.read_bytes().find(name)
    assert place > 0, key
    return place + len(name) + 4


def patch_float(key: str, value: float) -> Callable[[Path], None]:
    return lambda path: patch(path, value_at(path, key), struct.pack("<f", value))


def patch_scores(path: Path) -> None:
    at = value_at(path, "tokenizer.ggml.scores") + 12
    patch(path, at, struct.pack("<640f", *([-1000.0] * 640)))


def tensor_of(path: Path, name: str) -> tuple[int, Any]:
    tensor = read_gguf(path).tensors[name]
    return tensor.start, next(t.data for t in gguf.GGUFReader(path).tensors if t.name == name).copy()


def patch_permute(path: Path) -> None:
    """The rows of a query matrix from a converter that does not permute."""
    start, data = tensor_of(path, "blk.1.attn_q.weight")
    undone = data.reshape(8, 16, 2, -1).swapaxes(1, 2).reshape(data.shape)
    patch(path, start, np.ascontiguousarray(undone).tobytes())


def patch_head(path: Path) -> None:
    """The head from a converter that treats the model as tied."""
    _, embedding = tensor_of(path, "token_embd.weight")
    start, head = tensor_of(path, "output.weight")
    assert head.shape == embedding.shape
    patch(path, start, embedding.tobytes())


def patch_one_row(path: Path) -> None:
    start, data = tensor_of(path, "blk.0.ffn_up.weight")
    patch(path, start, np.ascontiguousarray(data[::-1]).tobytes())


def patch_factors(path: Path) -> None:
    start, data = tensor_of(path, "rope_freqs.weight")
    patch(path, start, np.ones_like(data).tobytes())


PATCHES: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    "rope theta": (
        "tied",
        patch_float("llama.rope.freq_base", 500_000.0),
        "llama.rope.freq_base is 500000.0",
        "mean KL",
    ),
    "norm epsilon": (
        "tied",
        patch_float("llama.attention.layer_norm_rms_epsilon", 1e-3),
        "layer_norm_rms_epsilon is",
        "mean KL",
    ),
    "scores": ("tied", patch_scores, "tokenizer.ggml.scores: ", "token ids differ"),
    "Q/K permute": ("tied", patch_permute, "blk.1.attn_q.weight: its rows are in the folder's order", ""),
    "tied head": (
        "untied",
        patch_head,
        "output.weight: row 0 differs from lm_head.weight and equals the embedding's",
        "",
    ),
    "rows": ("tied", patch_one_row, "blk.0.ffn_up.weight: row 0", ""),
    "rope factors": ("llama3", patch_factors, "rope_freqs.weight does not contain", "mean KL"),
    "yarn factor": (
        "qwen3 yarn",
        patch_float("qwen3.rope.scaling.factor", 1.0),
        "rope.scaling.factor is 1.0",
        "mean KL",
    ),
    "yarn magnitude": (
        "qwen3 yarn",
        patch_float("qwen3.rope.scaling.attn_factor", 1.0),
        "rope.scaling.attn_factor is 1.0",
        "mean KL",
    ),
}


@pytest.mark.parametrize("what", PATCHES)
def test_a_file_with_one_place_changed_is_caught_by_the_audit_and_named(what: str, models: Any, tmp_path: Path) -> None:
    name, spoil, named, _ = PATCHES[what]
    path = written(models(name), tmp_path / "m.gguf")
    spoil(path)
    findings = audit(path, models(name))
    assert len(findings) == 1, findings
    assert named in findings[0]


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what in ALSO_IN_USE else [pytest.mark.thorough]) for what in PATCHES]
)
def test_wrong_keys_and_tokens_are_also_caught_in_use_and_wrong_tensors_show_their_distance(
    what: str, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.context import StageFailedError
    from exporters.stages import export_stage, files_step
    from tests.stage_context import make_context

    name, spoil, named, gate = PATCHES[what]

    def write_and_spoil(model: Any, plan: Any, path: Path, *rest: Any) -> None:
        write_gguf(model, plan, path, *rest)
        spoil(path)

    monkeypatch.setattr(files_step, "write_gguf", write_and_spoil)
    stage = {
        "name": "g",
        "kind": "export",
        "model": "m",
        "file_types": ["F16"],
        "parity_positions": 2048,
        "max_length": 256,
        "threads": 1,
    }
    ctx = make_context(tmp_path, {**stage, "model": str(models(name))}, inputs={"model": models(name)})
    with pytest.raises(StageFailedError) as caught:
        export_stage.run(ctx)
    assert named in str(caught.value)
    assert gate in str(caught.value)
    record = parity(ctx)
    assert record["passed"] is False
    (file,) = record["files"]
    assert file["verdict"] == "refused"
    assert gate or file["quality"]["mean_kl"] > 1e-6


def test_a_head_in_the_file_of_a_tied_model_is_found(models: Any, tmp_path: Path) -> None:
    path = written(models("untied"), tmp_path / "m.gguf")
    other = shutil.copytree(models("untied"), tmp_path / "tied")
    from safetensors.numpy import load_file, save_file

    tensors = load_file(other / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, other / "model.safetensors")
    text = (other / "config.json").read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    (other / "config.json").write_text(text)
    assert audit(path, other) == [
        "tensor output.weight does not exist in the model: the model's head shares the embedding's matrix"
    ]


@pytest.mark.parametrize(
    ("place", "data", "message"),
    [
        (8, struct.pack("<Q", 1 << 60), "tensors"),
        (16, struct.pack("<Q", 1 << 60), "keys"),
        (0, b"FUGG", "does not begin with the bytes GGUF"),
        (24, struct.pack("<Q", 1 << 60), "header"),
    ],
)
def test_a_lying_file_is_refused_at_once(place: int, data: bytes, message: str, models: Any, tmp_path: Path) -> None:
    path = written(models("tied"), tmp_path / "m.gguf")
    patch(path, place, data)
    with pytest.raises(OperatorError, match=message):
        audit(path, models("tied"))


@pytest.mark.parametrize("keep", [0, 3, 23, 100, 5000, -1, -100_000])
def test_a_cut_file_is_refused(keep: int, models: Any, tmp_path: Path) -> None:
    path = written(models("tied"), tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(OperatorError, match=r"m\.gguf"):
        audit(path, models("tied"))


def test_rows_so_small_that_their_scales_are_coarse_are_no_finding(tmp_path: Path, tokenizer: Path) -> None:
    base = build_model(tmp_path / "base", tokenizer)
    weights = SafetensorsFolder(base)
    header = {name: (info.dtype, info.shape) for name, info in weights.tensors.items()}
    copy_folder(base, tmp_path / "small")
    with SafetensorsWriter(tmp_path / "small" / "model.safetensors", header, {"format": "pt"}) as writer:
        for name, info in weights.tensors.items():
            values = weights.read(name) * np.float32(1e-4 if "k_proj" in name else 1.0)
            writer.write(np.ascontiguousarray(values).tobytes())
            assert info.dtype == "F32"
    export(tmp_path, tmp_path / "small", "Q8_0", "Q4_K_M", parity_positions=0)
