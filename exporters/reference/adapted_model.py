"""The reference for a merge: an adapter over its base model, applied by PEFT while the model runs, not merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from exporters.hf_model.empty_model import common_settings
from exporters.hf_model.model_folder import open_weights
from exporters.process.room import check_memory
from exporters.reference.needed_memory import reference_bytes
from exporters.reference.reference_model import TorchLogits, load_reference
from exporters.reference.streamed_model import AdapterOutsideLayersError, StreamedModel


class LogitsOfWindows(Protocol):
    """A model that computes the logits of windows."""

    def logits_into(
        self, windows: Sequence[Sequence[int]], out: NDArray[np.float32], progress: Callable[[int], None]
    ) -> None:
        """See `StreamedModel.logits_into`."""


def adapted_model(folder: Path, threads: int, adapter: Path, vocab_size: int) -> LogitsOfWindows:
    """An adapter over a base model.

    The base is read layer by layer if the adapter changes only layers, else it is loaded whole.

    Args:
        folder: the base model.
        threads: CPU threads.
        adapter: as PEFT saves it.
        vocab_size: of the adapter, if its training resized the vocabulary.

    Raises:
        OperatorError: the base model must be loaded whole and does not fit into memory.
    """
    weights = open_weights(folder)
    try:
        return StreamedModel(folder, weights, threads, adapter=adapter)
    except AdapterOutsideLayersError:
        check_memory(4 * sum(info.values for info in weights.tensors.values()))
        return TorchLogits(load_reference(folder, threads, adapter=adapter, vocab_size=vocab_size))


def adapted_bytes(folder: Path, positions: int, length: int) -> int:
    """Maximum memory of an adapter over a base model that is read layer by layer; see `reference_bytes`."""
    return reference_bytes(open_weights(folder), common_settings(folder), positions, length)
