"""Merges adapters into their base model, tensor by tensor and a few rows at a time, from disk to disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.artifacts.generation_config import end_ids, read_generation_config, write_generation_config
from engines.data.tokenizer_files import copy_tokenizer
from exporters.hf_model.model_folder import open_weights, read_config
from exporters.hf_model.tensor_files import DTYPE_BYTES, Buffers, SafetensorsWriter, row_chunks
from exporters.hf_model.turn_end import written_ends
from exporters.lora.adapter import read_adapter
from exporters.lora.adapter_part import MERGE_CHUNK_BYTES
from exporters.lora.merge_plan import Weighted
from exporters.lora.merged_weights import NAMES, MergedWeights
from exporters.lora.rounded_base import BaseRounding, RoundedBase
from recipes.problems import OperatorError

Progress = Callable[[float, float], None]
_BUFFERS = 4
"""Chunks that are computed, written, or waiting."""


@dataclass(frozen=True)
class Merged:
    """The result of a merge. `parameters` counts values, `bytes` is the size of the weights, `tensors` counts the
    changed ones."""

    parameters: int
    bytes: int
    tensors: int
    warnings: tuple[str, ...] = ()


def open_merged(
    base: Path,
    adapters: Sequence[tuple[Path, float]],
    *,
    dtype: str = "base",
    untie: bool = False,
    base_rounding: BaseRounding = "none",
) -> MergedWeights:
    """The tensors of a base model with adapters merged in, computed as they are read.

    Args:
        base: folder of a 16- or 32-bit model, one file or shards.
        adapters: folders of adapters and their weights.
        dtype: "base" keeps each tensor's type; or float32, bfloat16, float16.
        untie: see `MergedWeights`.
        base_rounding: round the base model's linear layers to NF4 and back before the sum.

    Raises:
        OperatorError: the base model is quantized or does not fit the adapters, or an adapter has a feature or tensor
            that the merge does not support.
    """
    config = read_config(base)
    weights = open_weights(base)
    weighted = [Weighted(read_adapter(folder), weight) for folder, weight in adapters]
    if base_rounding != "none":
        _check_rounding(weighted, base_rounding)
    rounded = None if base_rounding == "none" else RoundedBase(weights, double=base_rounding == "nf4-double")
    return MergedWeights(weights, config, weighted, dtype=dtype, untie=untie, rounded=rounded)


def open_trained(base: Path, adapter: Path, quantization: Mapping[str, Any], *, untie: bool) -> MergedWeights:
    """The tensors, float32, of the model that a training over a 4-bit base has trained: the values that the 4-bit
    weights stand for, plus the adapter.

    Args:
        base: folder of the 16- or 32-bit model that the training quantized.
        adapter: its adapter.
        quantization: how the base was loaded, as the adapter's base.json says.
        untie: see `MergedWeights`.
    """
    weights, config = open_weights(base), read_config(base)
    rounded = RoundedBase(
        weights,
        double=quantization.get("bnb_4bit_use_double_quant") is True,
        quant_type="fp4" if quantization.get("bnb_4bit_quant_type") == "fp4" else "nf4",
        skipped=tuple(name for name in quantization.get("llm_int8_skip_modules") or () if isinstance(name, str)),
    )
    adapted = [Weighted(read_adapter(adapter), 1.0)]
    return MergedWeights(weights, config, adapted, dtype="float32", untie=untie, rounded=rounded)


def _check_rounding(adapters: Sequence[Weighted], base_rounding: BaseRounding) -> None:
    for item in adapters:
        for change in item.adapter.changes.values():
            if change.initial is not None:
                raise OperatorError(
                    f"base_rounding — got {base_rounding}; {item.adapter.folder} has init_lora_weights = "
                    f"{change.initial}, which took a part out of the base model before the rounding; allowed none"
                )


def merge(
    base: Path,
    adapters: Sequence[tuple[Path, float]],
    out: Path,
    *,
    dtype: str = "base",
    untie: bool = False,
    base_rounding: BaseRounding = "none",
    progress: Progress = lambda _done, _total: None,
    chunk_bytes: int = MERGE_CHUNK_BYTES,
    threads: int = 1,
) -> Merged:
    """Write the merged model to `out`, an existing empty folder, in the same files as the base model.

    Args:
        base: see `open_merged`, as for the next two and for `untie` and `base_rounding`.
        adapters: folders and weights.
        out: the merged model's folder.
        dtype: type of the merged weights.
        untie: give the head a separate matrix.
        base_rounding: round the base model first.
        progress: called with the number of merged values and the total.
        chunk_bytes: float32 bytes of a chunk of rows.
        threads: CPU threads. Chunks are small and the disk is the limit, so one thread is fastest on a busy machine.

    Raises:
        OperatorError: as `open_merged`, or a value is not finite after rounding.
    """
    torch.set_num_threads(threads)
    weights = open_merged(base, adapters, dtype=dtype, untie=untie, base_rounding=base_rounding)
    total = sum(info.values for info in weights.tensors.values())
    done = 0

    def advance(values: int) -> None:
        nonlocal done
        done += values
        progress(done, total)

    size = _write_files(weights, out, chunk_bytes, advance)
    _write_index(weights, out, size)
    write_config(weights, out)
    copy_tokenizer(out, *(folder for folder, _ in adapters), base)
    write_ends(weights, out, base, [folder for folder, _ in adapters])
    return Merged(total, size, len(weights.changed), tuple(weights.warnings))


def _write_files(weights: MergedWeights, out: Path, chunk_bytes: int, advance: Callable[[int], None]) -> int:
    """Write every weight file; while one waits for the disk, the next is computed. Return the size of all weights."""
    size = 0
    buffers = Buffers(_BUFFERS, chunk_bytes)
    with ThreadPoolExecutor(1) as waiting:
        finished = []
        for file in weights.files:
            infos = [info for info in weights.tensors.values() if info.file == file]
            header = {info.name: (info.dtype, info.shape) for info in infos}
            writer = SafetensorsWriter(out / file.name, header, {"format": "pt"}, buffers)
            try:
                for info in infos:
                    for start, stop in row_chunks(info.rows, info.columns, chunk_bytes):
                        place = buffers.take((stop - start) * info.columns * DTYPE_BYTES[info.dtype])
                        weights.read_into(info.name, start, stop, place)
                        writer.write(place)
                        size += len(place)
                        advance((stop - start) * info.columns)
            except BaseException:
                writer.abandon()
                raise
            finished.append(waiting.submit(writer.finish))
        for end in finished:
            end.result()
    return size


def _write_index(weights: MergedWeights, out: Path, size: int) -> None:
    if len(weights.files) == 1 and weights.files[0].name == "model.safetensors":
        return
    places = {info.name: info.file.name for info in weights.tensors.values()}
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_ends(weights: MergedWeights, out: Path, base: Path, adapters: Sequence[Path]) -> None:
    """Write generation_config.json: the base model's, with every token at which the adapters' answers end.

    An adapter that Cockpit trained names its tokens in the same file. For any other the merged folder's chat template
    says them, so the tokenizer's files must be there.
    """
    ends: list[int] = []
    for adapter in adapters:
        settings = read_generation_config(adapter)
        ends += end_ids(settings) if settings else written_ends(out)
    write_generation_config(out, base, weights.config, ends)


def write_config(weights: MergedWeights, out: Path) -> None:
    """Write the merged model's config.json, with the type of the merged weights."""
    matrices = [info for info in weights.tensors.values() if len(info.shape) > 1]
    dtype = NAMES[max(matrices, key=lambda info: info.values).dtype]
    kept: dict[str, Any] = {k: v for k, v in weights.config.items() if k not in ("torch_dtype", "_name_or_path")}
    (out / "config.json").write_text(json.dumps({**kept, "dtype": dtype}, indent=2) + "\n")
