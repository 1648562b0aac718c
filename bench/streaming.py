"""`python -m bench.streaming`: time and memory of merge and conversion on synthetic models of 0.3 and 1 billion
parameters.

Memory is the peak of anonymous resident memory (RssAnon) of a separate process, minus its value before the work. The
merge is compared with PEFT's `merge_and_unload` and `save_pretrained`, in turns, in one run; ratios are of CPU seconds,
which other work on the machine changes least. The proof of F16 is that of its bytes and its meaning; the reference is
transformers on 128 tokens, its weights read layer by layer. With `--llama-cpp DIR` (and `--llama-python`, for its
dependencies) the F16 conversion is compared with llama.cpp's own converter.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from exporters.hf_model.tensor_files import SafetensorsWriter
from tests.exporters.small_models import build_tokenizer

SIZES = {"0.3B": (1024, 2816, 22), "1B": (2048, 5632, 22)}
"""hidden_size, intermediate_size, num_hidden_layers."""
VOCAB = 32_000
_WATCH = """
import json, os, sys, threading, time
import torch
torch.set_num_threads(2)
from pathlib import Path
def anon():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024
base, peak, ended = anon(), 0, False
def watch():
    global peak
    while not ended:
        peak = max(peak, anon())
        time.sleep(0.002)
"""
_DONE = """
ended = True
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "anonymous_bytes": max(peak, anon()) - base}))
"""
MERGE = (
    _WATCH
    + """
from exporters.lora.merge import merge
threading.Thread(target=watch, daemon=True).start()
started, used = time.perf_counter(), time.process_time()
merge(Path(sys.argv[1]), [(Path(sys.argv[2]), 1.0)], Path(sys.argv[3]))
seconds, cpu = time.perf_counter() - started, time.process_time() - used
"""
    + _DONE
)
CONVERT = (
    _WATCH
    + """
from exporters.gguf.write import read_model, write_gguf
threading.Thread(target=watch, daemon=True).start()
started, used = time.perf_counter(), time.process_time()
model = read_model(Path(sys.argv[1]))
write_gguf(model, model.plan("F16"), Path(sys.argv[3]) / "m.gguf", None)
seconds, cpu = time.perf_counter() - started, time.process_time() - used
"""
    + _DONE
)
PROOF = (
    _WATCH
    + """
from exporters.gguf.write import read_model, write_gguf
from exporters.proof.audit import prove
from exporters.proof.byte_proof import ByteProver
folder, path = Path(sys.argv[1]), Path(sys.argv[3]) / "m.gguf"
model = read_model(folder)
write_gguf(model, model.plan("F16"), path, None)
base = peak = anon()
threading.Thread(target=watch, daemon=True).start()
started, used = time.perf_counter(), time.process_time()
with ByteProver(2, same_kernels=True) as prover:
    found = prove(path, folder, prover, file_type="F16")
assert found.bytes.equal == found.bytes.tensors, found.bytes.findings
seconds, cpu = time.perf_counter() - started, time.process_time() - used
"""
    + _DONE
)
REFERENCE = (
    _WATCH
    + """
import numpy as np
from exporters.hf_model.model_folder import open_weights
from exporters.reference.streamed_model import StreamedModel
threading.Thread(target=watch, daemon=True).start()
started, used = time.perf_counter(), time.process_time()
model = StreamedModel(Path(sys.argv[1]), open_weights(Path(sys.argv[1])), 2)
model.logits_into([list(range(3, 131))], np.memmap(Path(sys.argv[3]) / "l.f32", np.float32, "w+", shape=(128, 32000)))
seconds, cpu = time.perf_counter() - started, time.process_time() - used
"""
    + _DONE
)
PEFT = (
    _WATCH
    + """
from peft import PeftModel
from transformers import AutoModelForCausalLM
threading.Thread(target=watch, daemon=True).start()
started, used = time.perf_counter(), time.process_time()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
os.sync()
seconds, cpu = time.perf_counter() - started, time.process_time() - used
"""
    + _DONE
)


def main() -> int:
    """Build the models, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-cpp", type=Path, help="a llama.cpp checkout, for its converter")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python with the converter's dependencies")
    args = parser.parse_args()
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as temporary:
        root = Path(temporary)
        words = build_tokenizer(_made(root / "words"))
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name, (hidden, inner, layers) in SIZES.items():
            model, adapter = _model(_made(root / name), words, hidden, inner, layers), _made(root / f"{name}-adapter")
            _adapter(adapter, hidden, inner, layers)
            runs = {"merge": MERGE, "F16": CONVERT, "proof of F16": PROOF, "reference": REFERENCE}
            runs |= {"PEFT": PEFT} if name == "0.3B" else {}
            found[name] = _measure(runs, model, adapter, root / "exported", args.rounds)
            if args.llama_cpp and name == "0.3B":
                found[name]["upstream"] = _upstream(
                    args.llama_cpp, args.llama_python, model, root / "exported", args.rounds
                )
            shutil.rmtree(model)
        for name, works in found.items():
            rows += [
                (f"{work}, {name}", f"{w['seconds']:.2f} s, CPU {w['cpu_seconds']:.2f} s", _memory(w))
                for work, w in works.items()
            ]
        rows += _ratios(found)
    width = max(len(row[0]) for row in rows)
    sys.stdout.write("".join(f"{what:<{width}}  {time:>10}  {memory:>10}\n" for what, time, memory in rows))
    return 0


def _memory(work: dict[str, float]) -> str:
    return f"{work['anonymous_bytes'] / 2**20:.0f} MiB" if work["anonymous_bytes"] else ""


def _ratios(found: dict[str, dict[str, dict[str, float]]]) -> list[tuple[str, str, str]]:
    small, large = found["0.3B"], found["1B"]
    speed = small["PEFT"]["cpu_seconds"] / small["merge"]["cpu_seconds"]
    memory = small["merge"]["anonymous_bytes"] / small["PEFT"]["anonymous_bytes"]
    rows = [("merge compared with PEFT", f"{speed:.1f}x fast", f"{memory:.3f}x")]
    proof = large["proof of F16"]["cpu_seconds"] / large["F16"]["cpu_seconds"]
    rows.append(("proof of F16 compared with its writing, 1B", f"{proof:.2f}x long", ""))
    for work in ("merge", "F16", "proof of F16", "reference"):
        growth = large[work]["anonymous_bytes"] / small[work]["anonymous_bytes"]
        rows.append((f"{work}, 1B compared with 0.3B", "", f"{growth:.2f}x"))
    if "upstream" in small:
        rows.append(
            (
                "F16 compared with llama.cpp's converter, whole processes",
                f"{small['upstream']['whole_seconds'] / small['F16']['whole_seconds']:.1f}x fast",
                "",
            )
        )
    return rows


def _measure(runs: dict[str, str], model: Path, adapter: Path, out: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measure every job in turns: the shortest time of the rounds, and the largest memory."""
    taken: dict[str, list[dict[str, float]]] = {work: [] for work in runs}
    for _ in range(rounds):
        for work, code in runs.items():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            os.sync()
            command = [sys.executable, "-c", code, str(model), str(adapter), str(out)]
            used = _children_s()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            taken[work].append({**json.loads(done.stdout.splitlines()[-1]), "whole_seconds": _children_s() - used})
    return {
        work: {
            "seconds": min(run["seconds"] for run in found),
            "cpu_seconds": min(run["cpu_seconds"] for run in found),
            "whole_seconds": min(run["whole_seconds"] for run in found),
            "anonymous_bytes": max(run["anonymous_bytes"] for run in found),
        }
        for work, found in taken.items()
    }


def _upstream(checkout: Path, python: str, model: Path, out: Path, rounds: int) -> dict[str, float]:
    import time

    command = [
        python,
        str(checkout / "convert_hf_to_gguf.py"),
        str(model),
        "--outtype",
        "f16",
        "--outfile",
        str(out / "u.gguf"),
    ]
    seconds, cpu = [], []
    for _ in range(rounds):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        started, used = time.perf_counter(), _children_s()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        seconds.append(time.perf_counter() - started)
        cpu.append(_children_s() - used)
    return {"seconds": min(seconds), "cpu_seconds": min(cpu), "whole_seconds": min(cpu), "anonymous_bytes": 0.0}


def _children_s() -> float:
    """CPU seconds of all ended processes that this one started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _model(folder: Path, words: Path, hidden: int, inner: int, layers: int) -> Path:
    """Write a Llama folder in bfloat16 with random weights, shard by shard."""
    import torch

    heads = hidden // 128
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads // 4 or 1,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": VOCAB, "tie_word_embeddings": False,
        "rope_theta": 10_000.0, "hidden_act": "silu", "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for file in words.iterdir():
        shutil.copyfile(file, folder / file.name)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, hidden)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in _linear(hidden, inner).items()}
        shapes |= {
            f"model.layers.{layer}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (VOCAB, hidden)}
    names = list(shapes)
    parts = [names[start : start + 40] for start in range(0, len(names), 40)]
    places: dict[str, str] = {}
    generator = torch.Generator().manual_seed(1)
    for number, part in enumerate(parts):
        shard = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        places |= dict.fromkeys(part, shard)
        with SafetensorsWriter(
            folder / shard, {name: ("BF16", shapes[name]) for name in part}, {"format": "pt"}
        ) as writer:
            for name in part:
                values = torch.randn(shapes[name], generator=generator).mul_(0.02).to(torch.bfloat16)
                writer.write(values.view(torch.uint8).numpy().tobytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def _linear(hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    heads = hidden // 128
    keys = (heads // 4 or 1) * 128
    return {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip


def _adapter(folder: Path, hidden: int, inner: int, layers: int, rank: int = 16) -> None:
    """LoRA on every linear layer."""
    import torch

    modules = {name.rpartition(".")[2] for name in _linear(hidden, inner)}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 32, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted(modules), "base_model_name_or_path": "",
    }  # fmt: skip
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        for name, (rows, columns) in _linear(hidden, inner).items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            shapes |= {f"{prefix}.lora_A.weight": (rank, columns), f"{prefix}.lora_B.weight": (rows, rank)}
    with SafetensorsWriter(
        folder / ADAPTER_WEIGHTS, {name: ("F32", shape) for name, shape in shapes.items()}, {"format": "pt"}
    ) as writer:
        for shape in shapes.values():
            writer.write(torch.randn(shape).mul_(0.02).numpy().tobytes())


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
