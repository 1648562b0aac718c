"""W + scale * B A for every adapted layer, in float32, rounded once; streamed by rows, so memory stays small.

The sum is PEFT's `merge_and_unload`, operation for operation, so that a float32 result is equal to it bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.manifest import ManifestError, manifest_sha256
from exporters.adapter import Adapter, Pair, read_adapter, read_matrix
from exporters.model_folder import copy_tokenizer, open_weights, read_config
from exporters.tensor_files import CHUNK_BYTES, SafetensorsFolder, SafetensorsWriter, TensorInfo, row_chunks
from recipes.problems import OperatorError, printable

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {value: key for key, value in DTYPES.items()}

Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Merged:
    """What a merge did. `parameters` counts values; `bytes` is the size of the weights."""

    parameters: int
    bytes: int
    layers: int


def merge(
    base: Path,
    adapter_folder: Path,
    out: Path,
    *,
    dtype: str = "base",
    progress: Progress = lambda _done, _total: None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Merged:
    """Write the merged model to `out`, an existing empty folder, with the base's division into files.

    Args:
        base: folder of a 16- or 32-bit model, one file or shards.
        adapter_folder: folder of a LoRA or rsLoRA adapter.
        out: where the model goes.
        dtype: "base" keeps each tensor's type; or float32, bfloat16, float16.
        progress: called with values merged and values in all.
        chunk_bytes: float32 bytes of a chunk of rows.

    Raises:
        OperatorError: a base that is quantized or another than the adapter's, an adapter feature or tensor that has no
            place, or a value that is not finite after rounding.
    """
    config = read_config(base)
    weights = open_weights(base)
    adapter = read_adapter(adapter_folder)
    _check_tokenizers(base, adapter_folder)
    targets = _targets(weights, adapter)
    if config["tie_word_embeddings"] and "lm_head.weight" in targets:
        raise OperatorError("the adapter changes lm_head, which is the embedding in this base (tie_word_embeddings)")
    total = sum(info.values for info in weights.tensors.values())
    done, size = 0, 0
    for file in weights.files:
        infos = [info for info in weights.tensors.values() if info.file == file]
        types = {info.name: DTYPES.get(dtype, info.dtype) for info in infos}
        header = {info.name: (types[info.name], info.shape) for info in infos}
        with SafetensorsWriter(out / file.name, header, {"format": "pt"}) as writer:
            for info in infos:
                delta = _Delta(targets[info.name]) if info.name in targets else None
                for start, stop in row_chunks(info.rows, info.columns, chunk_bytes):
                    data = _merged_rows(weights, info, start, stop, delta, types[info.name])
                    writer.write(data)
                    done += (stop - start) * info.columns
                    size += len(data)
                    progress(done, total)
    _write_index(weights, out, size)
    _write_config(config, weights, out, dtype)
    copy_tokenizer([adapter_folder, base], out)
    if (base / "generation_config.json").is_file():
        (out / "generation_config.json").write_bytes((base / "generation_config.json").read_bytes())
    return Merged(total, size, len(targets))


def check_base(base: Path, base_sha256: str | None, adapter_folder: Path) -> str:
    """Refuse a base that the adapter was not trained on.

    Args:
        base: the base model's folder.
        base_sha256: its manifest's SHA-256, when known.
        adapter_folder: the adapter, whose base.json names its base's manifest.

    Returns:
        What could not be checked, for a warning; empty when the hashes are equal.

    Raises:
        OperatorError: they differ; the text has both.
    """
    wanted = Adapter(adapter_folder, {}).base.get("manifest_sha256")
    if base_sha256 is None:
        try:
            base_sha256 = manifest_sha256(base)
        except ManifestError:
            base_sha256 = None
    if not wanted or not base_sha256:
        side = "the adapter does not say on which base it was trained" if not wanted else f"{base} has no manifest"
        return f"{side}: whether base and adapter belong together was not checked"
    if wanted != base_sha256:
        raise OperatorError(
            f"the adapter was trained on another base: it names manifest {printable(str(wanted))}, {base} has {base_sha256}",
            f"merge it into the base it was trained on ({printable(str(Adapter(adapter_folder, {}).base.get('path', 'unknown')), 200)})",
        )
    return ""


class _Delta:
    """The change of one weight, a few rows at a time."""

    def __init__(self, pair: Pair) -> None:
        assert pair.a is not None
        assert pair.b is not None
        self._a = torch.from_numpy(read_matrix(pair.a).copy())
        self._b = torch.from_numpy(read_matrix(pair.b).copy())
        self._scale = pair.scale

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return (self._b[start:stop] @ self._a) * self._scale


def _merged_rows(
    weights: SafetensorsFolder, info: TensorInfo, start: int, stop: int, delta: _Delta | None, dtype: str
) -> bytes:
    rows = torch.from_numpy(weights.read_rows(info.name, start, stop).copy())
    if delta is not None:
        rows += delta.rows(start, stop)
    stored = rows.to(_TORCH[dtype])
    if not bool(torch.isfinite(stored).all()):
        raise OperatorError(
            f"{printable(info.name, 200)} has a value that is not finite as {_NAMES[dtype]}",
            "choose dtype = bfloat16 or float32" if dtype == "F16" else "the base or the adapter is damaged",
        )
    return stored.contiguous().view(torch.uint8).numpy().tobytes()


def _targets(weights: SafetensorsFolder, adapter: Adapter) -> dict[str, Pair]:
    """The adapter's pair for each weight that it changes: every pair has exactly one weight, of its shape."""
    targets: dict[str, Pair] = {}
    for module, pair in adapter.pairs.items():
        assert pair.a is not None
        assert pair.b is not None
        name, shape = f"{module}.weight", (pair.b.shape[0], pair.a.shape[1])
        if name not in weights.tensors:
            raise OperatorError(
                f"the adapter changes {printable(module, 200)}, which the base {weights.folder} does not have"
            )
        if weights.tensors[name].shape != shape:
            raise OperatorError(
                f"{printable(module, 200)} is {weights.tensors[name].shape} in the base and {shape} in the adapter"
            )
        targets[name] = pair
    return targets


def _check_tokenizers(base: Path, adapter: Path) -> None:
    ours, theirs = base / "tokenizer.model", adapter / "tokenizer.model"
    if ours.is_file() and theirs.is_file() and ours.read_bytes() != theirs.read_bytes():
        raise OperatorError(
            "the adapter has another tokenizer.model than the base", "their token ids mean different text"
        )


def _write_index(weights: SafetensorsFolder, out: Path, size: int) -> None:
    if len(weights.files) == 1 and weights.files[0].name == "model.safetensors":
        return
    places = {info.name: info.file.name for info in weights.tensors.values()}
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_config(config: dict[str, Any], weights: SafetensorsFolder, out: Path, dtype: str) -> None:
    """The base's config with the type of the weights that were written."""
    if dtype == "base":
        matrices = [info for info in weights.tensors.values() if len(info.shape) > 1]
        dtype = _NAMES[max(matrices, key=lambda info: info.values).dtype]
    kept = {key: value for key, value in config.items() if key not in ("torch_dtype", "_name_or_path")}
    (out / "config.json").write_text(json.dumps({**kept, "dtype": dtype}, indent=2) + "\n")
