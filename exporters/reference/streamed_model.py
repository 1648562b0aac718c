"""Runs a transformers model in float32 whose weights are read while they are used: one layer is in memory at a time.

All windows go through a layer together, so that one pass reads the weights once. Windows are padded on the right; a
causal model's values at earlier positions do not depend on the padding. The embedding is read by the rows of the tokens
in use, the output head in chunks of rows. Uses the GPU if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.artifacts.adapter_folder import ADAPTER_WEIGHTS
from exporters.hf_model.empty_model import (
    LAYER_LISTS,
    ParameterSources,
    adapter_names_in_text_model,
    build_empty,
    names_in_text_model,
)
from exporters.hf_model.tensor_files import Weights, read_header, row_chunks
from exporters.reference.rounded_inputs import rounded
from recipes.problems import OperatorError

BATCH_POSITIONS = 4096
"""Positions that go through the layers together, padding included. Activations grow with it."""
_FINISHED_ROWS = 64

Progress = Callable[[int], None]


@dataclass
class Rounding:
    """A second computation beside the exact one, as a runtime computes that rounds the inputs of its matrix products.

    Attributes:
        kinds: how the input of a layer is rounded, by the name of the checkpoint's tensor that it multiplies; see
            `rounded_inputs`.
        logits: its logits, float32 [positions of the windows, vocab_size].
        windows: how many of the first windows are computed a second time.
        complete: whether every product of the model was rounded; set by the computation.
    """

    kinds: Mapping[str, str]
    logits: NDArray[np.float32]
    windows: int
    complete: bool = True


class AdapterOutsideLayersError(Exception):
    """An adapter changes the embedding or the output head, which are not read layer by layer, or has other names of
    layers than the text model, because it was trained on a multimodal one."""


class StreamedModel:
    """A causal language model of transformers in float32.

    Attributes:
        layers: number of layers.
        modules: the modules between the token ids and the hidden states before the head, by transformers' names.
        inside: which positions of the running batch are tokens and not padding, torch bool [rows * longest row].
    """

    def __init__(
        self,
        folder: Path,
        weights: Weights,
        threads: int,
        *,
        adapter: Path | None = None,
    ) -> None:
        """Build the model without its weights.

        Args:
            folder: its config.
            weights: its tensors, with the names of the folder.
            threads: CPU threads.
            adapter: a PEFT adapter that is applied to its layers, not merged; its matrices stay in memory.

        Raises:
            AdapterOutsideLayersError: see there.
        """
        import torch

        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._weights = weights
        self._model = build_empty(folder)
        self._sources = ParameterSources(self._model, weights, names_in_text_model(folder, weights))
        self._base = self._model.base_model
        self._embedding = self._model.get_input_embeddings()
        self._embedding_name = f"{self._name_of(self._embedding)}.weight"
        head = self._model.get_output_embeddings()
        if adapter is not None:
            self._adapt(adapter, adapter_names_in_text_model(folder), head)
        self._head_name = self._name_of(head)
        self._head_biased = head.bias is not None
        self._round: Rounding | None = None
        self._exact = 0
        self._advance: Callable[[], None] = lambda: None
        prefix = self._model.base_model_prefix
        self.modules: dict[str, Any] = {f"{prefix}.{name}": module for name, module in self._base.named_modules()}
        self.inside: Any = None
        self._add_hooks()
        self._given_hidden, self._given_logits = _stubs()
        setattr(self._model, self._model.base_model_prefix, self._given_hidden)
        self._model.set_output_embeddings(self._given_logits)
        for module in self._base.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(self._device))

    def logits_into(
        self,
        windows: Sequence[Sequence[int]],
        out: NDArray[np.float32],
        progress: Progress = lambda _positions: None,
        rounding: Rounding | None = None,
    ) -> None:
        """Compute the logits after each token of every window.

        Args:
            windows: token ids, each window a sequence of its own.
            out: filled; float32 [positions of all windows, vocab_size], in memory or mapped from a file.
            progress: called with numbers of positions; their sum is the number of all positions.
            rounding: a second computation of the first windows.
        """
        import torch

        start = 0
        left = rounding.windows if rounding is not None else 0
        with torch.no_grad():
            for batch in _batches(windows, left):
                positions = sum(map(len, batch))
                again = batch[:left]
                left -= len(again)
                self._round = rounding if again else None
                hidden, hidden_again = self._hidden(batch, again, _shared(progress, positions, self.layers + 1))
                targets = [(hidden, out[start : start + positions])]
                if rounding is not None and again:
                    done = sum(map(len, windows[: rounding.windows - left - len(again)]))
                    size = sum(map(len, again))
                    kind = self._kind(self._head_weight())
                    targets.append((rounded(hidden_again, kind), rounding.logits[done : done + size]))
                self._apply_head(targets)
                for _, place in targets:
                    self._finish(place)
                start += positions
        self._round = None

    def run(self, windows: Sequence[Sequence[int]], progress: Progress = lambda _positions: None) -> None:
        """Compute the hidden states of windows for the sake of hooks on modules, without the output head.

        Args:
            windows: token ids, each window a sequence of its own.
            progress: called with numbers of positions; their sum is the number of all positions.
        """
        import torch

        with torch.no_grad():
            for batch in _batches(windows, 0):
                self._hidden(batch, (), _shared(progress, sum(map(len, batch)), self.layers + 1))

    def parameter_of(self, tensor: str) -> str | None:
        """The parameter that a tensor of the checkpoint, or the first whose name begins so, is or is a part of."""
        return self._sources.parameter_of(tensor)

    def _hidden(
        self, batch: Sequence[Sequence[int]], again: Sequence[Sequence[int]], advance: Callable[[], None]
    ) -> tuple[Any, Any]:
        """Hidden states before the output head, float32 [positions, hidden_size], of both computations."""
        import torch

        rows = [*batch, *again]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, window in enumerate(rows):
            ids[row, : len(window)] = torch.tensor(list(window))
        lengths = torch.tensor([len(window) for window in rows])
        self.inside = (torch.arange(ids.shape[1]) < lengths[:, None]).reshape(-1).to(self._device)
        self._exact, self._advance = len(batch), advance
        hidden = self._base(input_ids=ids.to(self._device), use_cache=False).last_hidden_state
        advance()
        kept = [hidden[row, : len(window)] for row, window in enumerate(rows)]
        first = torch.cat(kept[: len(batch)])
        return first, torch.cat(kept[len(batch) :]) if again else None

    def _apply_head(self, targets: Sequence[tuple[Any, NDArray[np.float32]]]) -> None:
        """Multiply hidden states, float32 [positions, hidden_size], with the output head, a few rows at a time."""
        import torch

        name = self._head_weight()
        info = self._weights.tensors[name]
        bias = None
        if self._head_biased:
            bias = self._sources.read([f"{self._head_name}.bias"])[f"{self._head_name}.bias"].to(self._device)
        for start, stop in row_chunks(info.rows, info.columns):
            rows = torch.from_numpy(self._weights.read_rows(name, start, stop)).to(self._device)
            for hidden, place in targets:
                logits = hidden @ rows.T
                place[:, start:stop] = (logits if bias is None else logits + bias[start:stop]).cpu().numpy()

    def _finish(self, logits: NDArray[np.float32]) -> None:
        """Apply what the model does with its head's output, such as a soft cap, in place."""
        import torch

        for start in range(0, len(logits), _FINISHED_ROWS):
            part = torch.from_numpy(logits[start : start + _FINISHED_ROWS].copy()).unsqueeze(0)
            self._given_logits.value = part
            self._given_hidden.value = torch.zeros(1, part.shape[1], 1)
            made = self._model(input_ids=torch.zeros(1, part.shape[1], dtype=torch.long), use_cache=False).logits
            if made.data_ptr() == part.data_ptr():
                return  # nothing is done with them
            logits[start : start + _FINISHED_ROWS] = made[0].numpy()

    def _head_weight(self) -> str:
        """The checkpoint's name of the output head; a tied head is the embedding."""
        own = self._sources.checkpoint_name(f"{self._head_name}.weight")
        if own is not None and not getattr(self._model.config, "tie_word_embeddings", False):
            return own
        return self._embedding_tensor()

    def _embedding_tensor(self) -> str:
        found = self._sources.checkpoint_name(self._embedding_name)
        if found is None:
            raise AssertionError(f"no values for {self._embedding_name}")
        return found

    def _name_of(self, wanted: Any) -> str:
        return next(str(name) for name, module in self._model.named_modules() if module is wanted)

    def _adapt(self, adapter: Path, names: Mapping[str, str] | None, head: Any) -> None:
        """Let PEFT put an adapter's matrices beside the layers' own, which stay without memory.

        `names`: from `adapter_names_in_text_model`.
        """
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        if not _is_in_layers(adapter):  # PEFT would fail on a larger vocabulary
            raise AdapterOutsideLayersError
        with _adapters_stay(BaseTunerLayer):
            PeftModel.from_pretrained(self._model, adapter, low_cpu_mem_usage=True, key_mapping=names).eval()
        inside = {module for layer in self._layers() for module in layer.modules()}
        outside = [module for module in self._model.modules() if module not in inside]
        same = self._model.get_input_embeddings() is self._embedding and self._model.get_output_embeddings() is head
        if not same or any(isinstance(module, BaseTunerLayer) for module in outside) or self._unfilled():
            raise AdapterOutsideLayersError
        for layer in self._layers():
            layer.requires_grad_(False)

    def _unfilled(self) -> bool:
        """Whether PEFT found no values for a matrix of the adapter: it is without memory and not the model's own."""
        prefix = self._model.base_model_prefix
        return any(
            parameter.is_meta and not self._sources.has(f"{prefix}.{name.replace('.base_layer.', '.')}")
            for name, parameter in self._base.named_parameters()
        )

    def _layers(self) -> Any:
        """The list of the model's layers.

        Raises:
            OperatorError: no list has a known name.
        """
        names = [name for name, _module in self._base.named_modules() if name.rpartition(".")[2] in LAYER_LISTS]
        if not names:
            raise OperatorError(
                f"{type(self._base).__name__} has no list of layers named {', '.join(LAYER_LISTS)}",
                "a model of this class cannot be read layer by layer",
            )
        return self._base.get_submodule(min(names, key=lambda name: name.count(".")))

    def _add_hooks(self) -> None:
        """Let every layer, and every other module with parameters of its own, read them before its use."""
        layers = self._layers()
        self.layers = len(layers)
        inside = {module for layer in layers for module in layer.modules()}
        prefix = self._model.base_model_prefix
        for name, module in self._base.named_modules():
            if module in layers:
                self._stream(module, f"{prefix}.{name}.", counted=True)
            elif module not in inside and module is not self._embedding and _has_parameters(module):
                self._stream(module, f"{prefix}.{name}.", counted=False)
        self._embedding.padding_idx = None  # it is a row of the whole embedding
        self._embedding.register_forward_pre_hook(self._take_rows)
        self._watch_products(layers)

    def _stream(self, module: Any, prefix: str, *, counted: bool) -> None:
        import torch

        parameters = dict(module.named_parameters(remove_duplicate=False))
        empty = {name: parameter for name, parameter in parameters.items() if parameter.is_meta}
        sources = {name: prefix + name.replace(".base_layer.", ".") for name in empty}
        for name in set(parameters) - set(empty):  # an adapter's
            _place(module, name, torch.nn.Parameter(parameters[name].float().to(self._device), requires_grad=False))

        def load(_module: Any, _arguments: Any) -> None:
            values = self._sources.read(list(sources.values()))
            for name, source in sources.items():
                value = values[source].reshape(empty[name].shape).to(self._device)
                _place(module, name, torch.nn.Parameter(value, requires_grad=False))

        def drop(_module: Any, _arguments: Any, _output: Any) -> None:
            for name, parameter in empty.items():
                _place(module, name, parameter)
            if counted:
                self._advance()

        module.register_forward_pre_hook(load)
        module.register_forward_hook(drop)

    def _take_rows(self, module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give the embedding only the rows of the tokens in use, and number these."""
        import torch

        ids, places = torch.unique(arguments[0], return_inverse=True)
        name = self._embedding_tensor()
        rows = [self._weights.read_rows(name, start, stop) for start, stop in _runs(ids.tolist())]
        values = torch.from_numpy(np.concatenate(rows)).to(self._device)
        module.weight = torch.nn.Parameter(values, requires_grad=False)
        return (places, *arguments[1:])

    def _watch_products(self, layers: Any) -> None:
        """Round the inputs of matrix products, for the second computation alone."""
        import torch

        prefix = self._model.base_model_prefix
        for name, module in self._base.named_modules():
            if isinstance(module, torch.nn.Linear):
                self._watch(module, f"{prefix}.{name}.weight")
        self._unwatched = any(
            parameter.dim() > 2 or (parameter.dim() == 2 and not isinstance(owner, torch.nn.Linear))
            for layer in layers
            for owner in layer.modules()
            for parameter in owner.parameters(recurse=False)
        )

    def _watch(self, module: Any, parameter: str) -> None:
        import torch

        def round_again(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self._round is None:
                return None
            self._round.complete = self._round.complete and not self._unwatched
            name, given = self._sources.checkpoint_name(parameter), arguments[0]
            if name is None or given.dim() != 3:
                self._round.complete = False
                return None
            again = rounded(given[self._exact :], self._kind(name))
            return (torch.cat([given[: self._exact], again]), *arguments[1:])

        module.register_forward_pre_hook(round_again)

    def _kind(self, name: str) -> str:
        return self._round.kinds.get(name, "F32") if self._round is not None else "F32"


@contextmanager
def _adapters_stay(layer: Any) -> Iterator[None]:
    """Keep PEFT from moving an adapter's matrices to where its base layer is: nowhere."""
    name = "_move_adapter_to_device_of_base_layer"
    original = getattr(layer, name)
    setattr(layer, name, lambda *_arguments, **_named: None)
    try:
        yield
    finally:
        setattr(layer, name, original)


def _stubs() -> tuple[Any, Any]:
    """Modules that stand in the model for its layers and its head, and give values computed before."""
    import torch
    from transformers.modeling_outputs import MoeModelOutputWithPast

    @dataclass
    class Given(MoeModelOutputWithPast):
        """What the layers of any family return: hidden states, and None for all else that its head looks for."""

        def __getattr__(self, name: str) -> None:
            if name.startswith("_"):
                raise AttributeError(name)

    class GivenHidden(torch.nn.Module):
        value: Any = None

        @property
        def decoder(self) -> Any:
            """The layers, where a family has them in a decoder."""
            return self

        def forward(self, *_arguments: Any, **_named: Any) -> Any:
            return Given(last_hidden_state=self.value)

    class GivenLogits(torch.nn.Module):
        value: Any = None
        weight = torch.empty(0)  # some families read its type

        def forward(self, _hidden: Any) -> Any:
            return self.value

    return GivenHidden(), GivenLogits()


def _is_in_layers(adapter: Path) -> bool:
    """Whether each tensor of an adapter belongs to a layer."""
    names = [info.name for info in read_header(adapter / ADAPTER_WEIGHTS)[0]]
    return all(any(f".{layers}." in name for layers in LAYER_LISTS) for name in names)


def _has_parameters(module: Any) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _place(module: Any, name: str, parameter: Any) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, parameter)


def _batches(windows: Sequence[Sequence[int]], again: int) -> Iterator[list[Sequence[int]]]:
    """Windows whose positions, padding and second computation included, fit a batch; at least one each."""
    batch: list[Sequence[int]] = []
    for number, window in enumerate(windows):
        longest = max(map(len, [*batch, window]))
        rows = len(batch) + 1 + max(0, min(number + 1, again) - (number - len(batch)))
        if batch and longest * rows > BATCH_POSITIONS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Bounds of runs of consecutive numbers in an ascending list."""
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or ids[place] != ids[place - 1] + 1:
            yield ids[start], ids[place - 1] + 1
            start = place


def _shared(progress: Progress, positions: int, parts: int) -> Callable[[], None]:
    """A function that reports one part of `positions` at each of `parts` calls."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(positions * done // parts - positions * (done - 1) // parts)

    return advance
