"""Applies one adapter to rows of one tensor: LoRA's product, DoRA's norms, full tensors, rows of tokens, biases."""

from __future__ import annotations

from collections.abc import Callable

import torch

from exporters.hf_model.tensor_files import TensorInfo, read_float_rows, row_chunks
from exporters.lora.adapter import read_matrix
from exporters.lora.initial_part import initial_matrices
from exporters.lora.merge_plan import PlannedPart

MERGE_CHUNK_BYTES = 4 * 1024 * 1024
"""Size of the float32 rows that are merged at once: a few such chunks are in memory, and small ones stay in the
processor's cache."""

BaseRows = Callable[[int, int], torch.Tensor]
"""Reads the base model's rows of the tensor from start to before stop, float32 [stop - start, columns]."""


class AdapterPart:
    """One adapter's effect on one tensor of [rows, columns]. Rows and changes are float32 [stop - start, columns]."""

    def __init__(self, part: PlannedPart, rows: int, columns: int, base_rows: BaseRows) -> None:
        """Read the adapter's matrices.

        Args:
            part: the adapter's change, replacement or both.
            rows: of the tensor.
            columns: of the tensor.
            base_rows: reads the tensor's rows in the base model.
        """
        self.weight = part.weight
        self._change = part.change
        self._replacement = part.replacement
        self._token_rows: dict[int, torch.Tensor] = {}
        self._added: torch.Tensor | None = None
        self._initial: tuple[torch.Tensor, torch.Tensor] | None = None
        self._magnitude: torch.Tensor | None = None
        self._space = torch.empty(0, 0)
        if part.token_rows is not None:
            self._token_rows = dict(zip(part.token_rows.indices, _tensor(part.token_rows.tensor), strict=True))
        if part.bias_change is not None:
            self._added = _tensor(part.bias_change.tensor).reshape(1, -1) * part.bias_change.scale
        if part.change is not None:
            assert part.change.a is not None
            assert part.change.b is not None
            self._a, self._b = _tensor(part.change.a), _tensor(part.change.b)
            self._magnitude = None if part.change.magnitude is None else _tensor(part.change.magnitude).reshape(-1)
            self._norms: torch.Tensor | None = None
            if part.change.initial is not None:
                weight = self._saved(base_rows(0, rows), 0, rows)
                rank, scale = self._a.shape[0], part.change.scale
                self._initial = initial_matrices(weight, rank, scale, part.change.initial)
            if self._magnitude is not None and part.change.transposed:
                self._norms = self._column_norms(rows, columns, base_rows)

    @property
    def is_product(self) -> bool:
        """Whether the effect is only scale * B A."""
        others = (self._replacement, self._magnitude, self._initial)
        return self._change is not None and all(other is None for other in others)

    def changed(self, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The adapted weight, [stop - start, columns]: the base model's rows with the full change."""
        rows = self._saved(rows, start, stop)
        if self._change is None:
            return self._with_tokens(rows, start, stop) if self._added is None else rows + self._added
        if self._initial is not None:
            rows = rows - self._initial[1][start:stop] @ self._initial[0]
        delta = self._product(start, stop)
        if self._magnitude is None:
            return rows + delta
        changed = rows + delta
        if self._norms is not None:
            return (self._magnitude / self._norms).view(1, -1) * changed
        norms = torch.linalg.norm(changed, dim=1)
        return (self._magnitude[start:stop] / norms).view(-1, 1) * changed

    def delta(self, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The difference to the base model's rows, [stop - start, columns]."""
        if self.is_product:
            return self._product(start, stop)
        return self.changed(rows, start, stop) - rows

    def _saved(self, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rows of the saved full tensor, [stop - start, columns], if the adapter has one; else the given rows."""
        if self._replacement is None:
            return rows
        return torch.from_numpy(read_float_rows(self._replacement, start, stop).copy())

    def _with_tokens(self, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rows with those of single tokens replaced, [stop - start, columns]."""
        inside = [index for index in self._token_rows if start <= index < stop]
        changed = rows.clone() if inside else rows
        for index in inside:
            changed[index - start] = self._token_rows[index]
        return changed

    def _product(self, start: int, stop: int) -> torch.Tensor:
        """scale * B A, [stop - start, columns]; for a transposed change scale * (B A) transposed.

        A is [r, columns] and B [rows, r]; a transposed change's A is [r, rows] and B [columns, r].
        """
        assert self._change is not None
        if self._change.transposed:
            return (self._b @ self._a[:, start:stop]).T * self._change.scale
        shape = (stop - start, self._a.shape[1])
        if self._space.shape[0] < shape[0]:
            self._space = torch.empty(shape)
        return torch.mm(self._b[start:stop], self._a, out=self._space[: shape[0]]).mul_(self._change.scale)

    def _column_norms(self, rows: int, columns: int, base_rows: BaseRows) -> torch.Tensor:
        """Norms over all rows, float32 [columns]. They need every row, so one pass computes them before the merge."""
        total = torch.zeros(columns, dtype=torch.float64)
        for start, stop in row_chunks(rows, columns, MERGE_CHUNK_BYTES):
            chunk = self._saved(base_rows(start, stop), start, stop) + self._product(start, stop)
            total += chunk.double().square().sum(0)
        return total.sqrt().float()


def _tensor(info: TensorInfo) -> torch.Tensor:
    """A tensor of the adapter in its shape, float32 [rows, columns] or [length]."""
    return torch.from_numpy(read_matrix(info).copy())
