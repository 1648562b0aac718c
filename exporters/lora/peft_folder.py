"""Gives PEFT an adapter under the names that it expects, so that a comparison loads every tensor.

PEFT leaves out tensors that it does not find by name, with no more than a warning: an adapter that was saved from a
compiled model would be compared as if it were untrained.
"""

from __future__ import annotations

from pathlib import Path

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from engines.files import read_regular_bytes
from exporters.hf_model.tensor_files import SafetensorsWriter, read_header, row_chunks, stored_rows
from exporters.lora.adapter import read_adapter


def folder_for_peft(folder: Path, scratch: Path) -> Path:
    """The adapter's folder, or a copy in `scratch` in which every tensor has the name that PEFT expects.

    Raises:
        OperatorError: as `read_adapter`.
    """
    renamed = read_adapter(folder).renamed
    if not renamed:
        return folder
    copy = scratch / "adapter"
    copy.mkdir(parents=True, exist_ok=True)
    (copy / ADAPTER_CONFIG).write_bytes(read_regular_bytes(folder / ADAPTER_CONFIG))
    infos = {renamed.get(info.name, info.name): info for info in read_header(folder / ADAPTER_WEIGHTS)[0]}
    header = {name: (info.dtype, info.shape) for name, info in infos.items()}
    with SafetensorsWriter(copy / ADAPTER_WEIGHTS, header, {"format": "pt"}) as writer:
        for info in infos.values():
            for start, stop in row_chunks(info.rows, info.columns):
                writer.write(stored_rows(info, start, stop))
    return copy
