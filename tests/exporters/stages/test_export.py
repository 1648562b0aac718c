"""What an export writes, warns of and refuses, and that it leaves no partial files."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.context import Input
from engines.data.hard_strings import HARD_STRINGS
from engines.events.attempts import Phase, Progress
from engines.events.writers import Warned
from engines.llama import library, quantizer
from engines.llama.golden import check_golden, golden_rows
from engines.llama.library import NativeError
from engines.llama.process import LlamaProcess
from engines.llama.quantizer import KernelQuantizer, NumpyQuantizer, open_quantizer
from exporters.gguf import importance
from exporters.gguf.quant_types import plan_file
from exporters.gguf.vocab import without_generation
from exporters.gguf.write import read_model, write_gguf
from exporters.hf_model.model_folder import local_folder
from exporters.hf_model.tensor_files import row_chunks
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError
from tests.exporters.exporting import export, merge, parity
from tests.exporters.small_models import build_model, copy_folder, edit_json

pytestmark = pytest.mark.torch


def test_tensor_types_and_keys_are_in_the_file(tmp_path: Path, base: Path) -> None:
    ctx, result = export(tmp_path, base, "Q4_K_M", "Q8_0")
    for file_type in ("Q4_K_M", "Q8_0"):
        reader = gguf.GGUFReader(ctx.out / f"run-{file_type}.gguf")
        model = read_model(base)
        planned = {choice.shape.name: choice.type for choice in model.plan(file_type).choices}
        assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors} == planned
        value = {name: field.contents() for name, field in reader.fields.items()}
        assert value["general.file_type"] == FILE_TYPES[file_type].id
        for key in (
            "context_length",
            "embedding_length",
            "block_count",
            "feed_forward_length",
            "vocab_size",
            "rope.dimension_count",
            "rope.freq_base",
        ):
            assert f"llama.{key}" in value, key
        for key in ("head_count", "head_count_kv", "layer_norm_rms_epsilon", "key_length", "value_length"):
            assert f"llama.attention.{key}" in value, key
        assert value["tokenizer.ggml.add_space_prefix"] is False
        assert "generation %}" not in value["tokenizer.chat_template"]
    assert result.metrics["q4_k_m_bytes"] < result.metrics["q8_0_bytes"]
    assert result.metrics["q4_k_m_mean_kl"] > result.metrics["q8_0_mean_kl"]


def test_quantized_values_are_the_models(tmp_path: Path, base: Path) -> None:
    """The kernels saw the right rows: every tensor decodes to about the folder's values."""
    model = read_model(base)
    plan = model.plan("Q6_K")
    with KernelQuantizer(1) as kernels:
        write_gguf(model, plan, tmp_path / "m.gguf", kernels)
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        source = model.weights.read(model.sources[tensor.name].name).reshape(-1)
        assert np.square(np.sort(decoded) - np.sort(source)).mean() < 1e-3 * np.square(source).mean(), tensor.name


def test_odd_widths_give_a_warning_before_writing(tmp_path: Path, tokenizer: Path) -> None:
    model = build_model(tmp_path / "model", tokenizer, hidden_size=96, intermediate_size=160, num_attention_heads=4)
    ctx, result = export(tmp_path, model, "Q4_K_M")
    events = ctx.events()
    warned = next(index for index, event in enumerate(events) if isinstance(event, Warned))
    writing = next(
        index for index, event in enumerate(events) if isinstance(event, Phase) and event.name.startswith("writing")
    )
    assert warned < writing
    assert "Q4_K → Q5_0" in events[warned].message
    assert result.metrics["q4_k_m_bits_per_weight"] > 6
    assert parity(ctx)["files"][0]["fallbacks"]


def test_progress_has_an_end(tmp_path: Path, base: Path) -> None:
    ctx, _ = export(tmp_path, base, "F16")
    progress = [event for event in ctx.events() if isinstance(event, Progress)]
    units = {event.unit for event in progress}
    assert units == {"seconds of work", "values", "positions"}
    for unit in units:
        last = [event for event in progress if event.unit == unit][-1]
        assert last.done == last.total


def test_positions_and_context_are_the_requested_ones(tmp_path: Path, base: Path) -> None:
    ctx, result = export(tmp_path / "a", base, "F16", parity_positions=150, max_length=40)
    record = parity(ctx)["data"]
    assert (record["positions"], record["windows"], record["max_length"]) == (150, 4, 40)
    assert parity(ctx)["files"][0]["meaning"]["tokenizer"]["texts"] == 2 + 3 * len(HARD_STRINGS), (
        "two windows of each document"
    )
    ctx, result = export(tmp_path / "b", base, "F16", parity_positions=0)
    assert parity(ctx)["passed"] is None
    assert "f16_mean_kl" not in result.metrics


def test_threads_reach_every_part(tmp_path: Path, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked: list[int] = []

    class Kernels(KernelQuantizer):
        def __init__(self, threads: int) -> None:
            asked.append(threads)
            super().__init__(threads)

    class Llama(LlamaProcess):
        def __init__(self, gguf_path: Path, n_ctx: int, threads: int) -> None:
            asked.append(threads)
            super().__init__(gguf_path, n_ctx, threads)

    monkeypatch.setattr(quantizer, "KernelQuantizer", Kernels)
    monkeypatch.setattr("exporters.stages.compare_step.LlamaProcess", Llama)
    before = torch.get_num_threads()
    try:
        ctx, _ = export(tmp_path, base, "Q8_0", threads=3, parity_positions=60)
        assert set(asked) == {3}
        assert torch.get_num_threads() == 3
        assert parity(ctx)["threads"] == 3
        merge(tmp_path / "merge", base, adapter, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_held_out_text_messages_and_tokens_are_read(tmp_path: Path, base: Path) -> None:
    documents = [{"path": f"{i}.py", "text": f"def f{i}(x):\n    return x + {i}\n" * 8} for i in range(8)]
    write_lines(tmp_path / "text" / "test.jsonl", documents)
    turns = [{"role": "user", "content": "What does f do?"}, {"role": "assistant", "content": "It adds <s> to x."}]
    write_lines(tmp_path / "messages" / "test.jsonl", [])
    write_lines(
        tmp_path / "messages" / "val.jsonl", [{"messages": turns, "group": "f.py", "question": "docstring"}] * 3
    )
    ctx, _ = export(tmp_path / "1", base, "F16", data=tmp_path / "text", parity_positions=100)
    assert (parity(ctx)["data"]["source"], parity(ctx)["data"]["split"]) == ("text", "test")
    ctx, _ = export(tmp_path / "2", base, "F16", data=tmp_path / "messages", parity_positions=400)
    assert (parity(ctx)["data"]["source"], parity(ctx)["data"]["split"]) == ("messages", "val")
    assert any("of the 400 requested positions" in event.message for event in ctx.events() if isinstance(event, Warned))
    write_tokens(tmp_path / "tokens", base)
    ctx, _ = export(tmp_path / "3", base, "F16", data=tmp_path / "tokens", parity_positions=50)
    assert (parity(ctx)["data"]["source"], parity(ctx)["data"]["positions"] >= 50) == ("tokens", True)


def write_tokens(folder: Path, model: Path) -> None:
    import hashlib

    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    folder.mkdir()
    documents = [[*processor.encode("import os\n\n\tprint(1)\r\n" * 5), 2] for _ in range(3)]
    data = np.concatenate([np.asarray(ids, "<u2") for ids in documents])
    data.tofile(folder / "test.bin")
    np.cumsum([len(ids) for ids in documents]).astype("<u8").tofile(folder / "test.idx")
    sha256 = hashlib.sha256(data.tobytes()).hexdigest()
    split = {"tokens": len(data), "documents": 3, "file": "test.bin", "sha256": sha256, "index": "test.idx"}
    manifest = {
        "format": 1,
        "dtype": "uint16",
        "eos_id": 2,
        "vocab_size": 640,
        "tokenizer_sha256": "",
        "splits": {"test": split},
    }
    (folder / "tokens.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type"),
        ({"num_hidden_layers": 3}, "blk.2"),
        ({"num_hidden_layers": 1}, "model.layers.1"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, "rope_parameters"),
        ({"vocab_size": 700}, "token_embd"),
        ({"tie_word_embeddings": False}, "output.weight"),
        ({"intermediate_size": 500}, "ffn_gate"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(
    tmp_path: Path, base: Path, fields: dict[str, Any], named: str
) -> None:
    spoiled = copy_folder(base, tmp_path / "model")
    edit_json(spoiled / "config.json", **fields)
    with pytest.raises(OperatorError, match=named):
        export(tmp_path, spoiled, "F16")
    assert not list((tmp_path / "run").rglob("*.gguf*"))


def test_a_full_disk_is_foreseen(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("exporters.process.room.shutil.disk_usage", lambda _path: usage._replace(free=1_000_000))
    with pytest.raises(OperatorError, match=r"needs \S+ MiB of disk .* has 977 KiB free"):
        export(tmp_path, base, "F16")


def test_an_export_killed_while_it_writes_leaves_no_file_of_that_name(tmp_path: Path, base: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from exporters.gguf.vocab import without_generation
from exporters.gguf.write import read_model, write_gguf
model = read_model(Path({str(base)!r}))
def end(values):
    return values > 1000 and os.kill(os.getpid(), signal.SIGKILL)
write_gguf(model, model.plan("F32"), Path({str(tmp_path / "m.gguf")!r}), None, end)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("m.gguf*")] == ["m.gguf.partial"]


class Corrupted:
    """Kernels with one flipped bit."""

    def __init__(self, kernels: Any, byte: int) -> None:
        self.record: dict[str, Any] = {}
        self._kernels, self._byte = kernels, byte

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        out = self._kernels.quantize(type_name, rows, importance).copy()
        out[1, self._byte] ^= 1
        return out

    def close(self) -> None:
        self._kernels.close()


def test_the_self_test_catches_a_single_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    types = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K")
    with KernelQuantizer(1) as kernels:
        for name in types:
            check_golden(kernels, name)
            with pytest.raises(NativeError, match=name):
                check_golden(Corrupted(kernels, 100), name)
    monkeypatch.setattr(quantizer, "KernelQuantizer", lambda threads: Corrupted(NumpyQuantizer(), 9))
    chosen, notes = open_quantizer({"Q8_0"}, 1)
    assert chosen.record["name"] == "gguf numpy"
    assert "self-test of the Q8_0 kernel" in notes[0]
    with pytest.raises(NativeError, match="Q4_K"):
        open_quantizer({"Q4_K"}, 1)


def test_threads_do_not_change_a_byte() -> None:
    rows = np.tile(golden_rows(), (5, 1))
    with KernelQuantizer(1) as one, KernelQuantizer(3) as three:
        assert (one.quantize("Q4_K", rows) == three.quantize("Q4_K", rows)).all()


def tensor_bytes(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


def test_numpy_writes_q8_where_there_are_no_kernels(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(threads: int) -> KernelQuantizer:
        raise NativeError("llama.cpp's library was not found")

    with KernelQuantizer(1) as kernels:
        model = read_model(base)
        (tmp_path / "kernels").mkdir()
        write_gguf(model, model.plan("Q8_0"), tmp_path / "kernels" / "run-Q8_0.gguf", kernels)
    monkeypatch.setattr(quantizer, "KernelQuantizer", missing)
    ctx, _ = export(tmp_path, base, "Q8_0", parity_positions=0)
    assert tensor_bytes(ctx.out / "run-Q8_0.gguf") == tensor_bytes(tmp_path / "kernels" / "run-Q8_0.gguf")
    assert any("are not used" in event.message for event in ctx.events() if isinstance(event, Warned))
    with pytest.raises(OperatorError, match="Q4_K"):
        export(tmp_path / "k", base, "Q4_K_M", parity_positions=0)


def test_openmp_is_found_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.load_openmp()
    with pytest.raises(NativeError, match="libgomp1"):
        library.load_openmp(["/nowhere/libgomp.so.1"])


def test_values_beyond_f16_are_refused_by_name(tmp_path: Path, tokenizer: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(build_model(tmp_path / "a", tokenizer), dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 70_000.0
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(OperatorError, match=r"blk\.1\.ffn_up\.weight contains 70000, outside the range of F16"):
        export(tmp_path, tmp_path / "a", "F16")


def test_a_padded_embedding_is_filled_with_unused_tokens(tmp_path: Path, tokenizer: Path) -> None:
    model = build_model(tmp_path / "model", tokenizer, vocab_size=704)
    ctx, result = export(tmp_path, model, "F16")
    tokens = gguf.GGUFReader(ctx.out / "run-F16.gguf").fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 704
    assert tokens[-1] == "[PAD703]"
    assert result.metrics["f16_mean_kl"] < 1e-6


def test_a_plan_covers_every_tensor(base: Path) -> None:
    model = read_model(base)
    assert {choice.shape.name for choice in model.plan("Q4_K_M").choices} == set(model.sources)
    assert model.plan("F16").bytes == plan_file("F16", model.shapes, layers=2).bytes


def test_chunks_of_rows_change_no_byte(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(build_model(tmp_path / "model", tokenizer, head_dim=48, attention_bias=True))
    with KernelQuantizer(1) as kernels:
        (tmp_path / "one").mkdir()
        write_gguf(model, model.plan("Q4_K_M"), tmp_path / "one" / "m.gguf", kernels)
        monkeypatch.setattr(importance, "row_chunks", functools.partial(row_chunks, chunk_bytes=1))
        (tmp_path / "two").mkdir()
        write_gguf(model, model.plan("Q4_K_M"), tmp_path / "two" / "m.gguf", kernels)
    assert (tmp_path / "one" / "m.gguf").read_bytes() == (tmp_path / "two" / "m.gguf").read_bytes()


def test_the_chat_template_renders_as_before(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    turns = [{"role": "user", "content": " a\n"}, {"role": "assistant", "content": "b "}]
    before = tokenizer.apply_chat_template(turns, tokenize=False)
    for template in (
        tokenizer.chat_template,
        tokenizer.chat_template.replace("{% generation %}", "{%- generation -%}\n"),
    ):
        tokenizer.chat_template = template
        wanted = tokenizer.apply_chat_template(turns, tokenize=False)
        tokenizer.chat_template = without_generation(template)
        assert "generation %}" not in tokenizer.chat_template
        assert tokenizer.apply_chat_template(turns, tokenize=False) == wanted
    assert "b <|im_end|>" in before


def test_a_hub_id_that_is_not_cached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OperatorError, match="nobody/nothing is not in the local hub cache"):
        local_folder(Input("model", "hub", "nobody/nothing", None))
