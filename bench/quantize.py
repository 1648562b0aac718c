"""Quantizing a file on every core: with Cockpit, and with libllama if COCKPIT_BENCH_LIBLLAMA is set.

The variable names the folder with the libraries of a complete build of llama.cpp. Both read the same F16 file and write
complete files, with the same threads, in turns; the shortest time of each counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from bench.rows import Row
from exporters.process.room import default_threads
from recipes.file_types import FILE_TYPES

LIBLLAMA = Path(__file__).with_name("libllama_quantize.py")
VARIABLE = "COCKPIT_BENCH_LIBLLAMA"
TYPES = ("Q8_0", "Q6_K", "Q4_K_M", "IQ4_XS")
ROUNDS = 3
HIDDEN, INNER, LAYERS, VOCAB = 1024, 2816, 4, 8192


def measure() -> list[Row]:
    """Million weights per second of each type, and the ratio to libllama's speed if it is measured."""
    threads = int(os.environ.get("COCKPIT_BENCH_THREADS", "0")) or default_threads()
    libraries = os.environ.get(VARIABLE)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model-F16.gguf"
        weights = _write_model(source)
        how = f"{weights / 1e6:.0f} M weights, {threads} threads, best of {ROUNDS}"
        for name in TYPES:
            ours, theirs = [], []
            for _ in range(ROUNDS):
                ours.append(_our_s(source, name, threads))
                if libraries:
                    theirs.append(_their_s(libraries, source, FILE_TYPES[name].id, threads))
            rows.append(Row(f"quantize {name}", weights / min(ours) / 1e6, "M/s", f"complete file, {how}"))
            if theirs:
                rows.append(
                    Row(f"quantize {name}, libllama", weights / min(theirs) / 1e6, "M/s", "in turns with Cockpit")
                )
                rows.append(Row(f"quantize {name}, ratio", min(theirs) / min(ours), "x", "Cockpit / libllama"))
            sys.stderr.write(f"  {name} done\n")
    return rows


def _our_s(source: Path, name: str, threads: int) -> float:
    """Seconds to write the file, as the command itself measures them: after the self-test and the measured rates."""
    job = {"source": str(source), "types": [name], "out": str(source.parent), "threads": threads, "force": True}
    command = [sys.executable, "-m", "exporters.quantize.quantize_file", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    made = next(line["file"] for line in map(json.loads, done.stdout.splitlines()) if "file" in line)
    return float(made["seconds"])


def _their_s(libraries: str, source: Path, number: int, threads: int) -> float:
    target = source.with_name("theirs.gguf")
    given = (LIBLLAMA, libraries, source, target, number, "", threads)
    command = [sys.executable, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _write_model(path: Path) -> int:
    """Write a Llama with random weights; return their number."""
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(8)
    writer.add_head_count_kv(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // 8)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(1)
    count = 0
    shapes = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN, HIDDEN),
        "attn_v": (HIDDEN, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
    }
    shapes |= {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
    tensors = {"token_embd.weight": (VOCAB, HIDDEN)}
    tensors |= {f"blk.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in shapes.items()}
    for name, shape in tensors.items():
        writer.add_tensor(name, (0.02 * rng.standard_normal(shape, np.float32)).astype(np.float16))
        count += shape[0] * shape[1]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count
