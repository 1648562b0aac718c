"""What the steps of a training read: their examples again, in the engine's order, from its fields and its data.

Nothing is recorded for it: the order is a function of the seed, the epoch, the number of examples and their lengths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import numpy as np

from engines.data.door import ReadCounts, read_rows, source_of_stage
from engines.data.encoders import load_encoder
from engines.data.shards import TokenShard, is_tokens_folder
from engines.files import open_regular
from engines.forward.order import grouped_by_length
from engines.forward.packing import packs_of
from engines.labels.row import LabelCounts
from engines.labels.stage_rows import examples_of, skips_refused
from engines.look.order import first_examples
from engines.look.stage_look import stage_of
from engines.look.step_answer import Difference, Segment, StepRow, StepsAnswer, StepsRequest
from engines.look.tokenizer import view_and_rules
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneFields
from recipes.stages.steps import steps_per_epoch
from recipes.stages.training import TrainingFields

SHOWN_CHARACTERS = 160
_REMEMBERED = 2_000_000
"""Pairs of examples that are not compared again in the next epoch."""
MAX_DOCUMENTS = 200
"""Documents that are named for one example."""


def serve_steps(request: IO[bytes], answers: IO[bytes]) -> None:
    """Answer one request."""
    asked = msgspec.json.decode(request.read(), type=StepsRequest)
    try:
        if asked.other:
            answer = StepsAnswer(difference=first_difference(asked.segments, asked.other))
        else:
            answer = StepsAnswer(rows=rows_of_step(asked.segments, asked.step))
    except OperatorError as error:
        answer = StepsAnswer(error=error.message, hint=error.hint or "")
    except MemoryError:
        answer = StepsAnswer(error="the examples need more memory than an examination may take")
    answers.write(msgspec.json.encode(answer) + b"\n")
    answers.flush()


class Examples(Protocol):
    """The examples of one data set in one form."""

    def __len__(self) -> int: ...

    def content(self, number: int) -> bytes:
        """What two equal examples have in common."""
        ...

    def rows(self, number: int) -> Iterator[tuple[str, int, int, str]]:
        """The documents or rows of an example: name, first token, tokens, text."""
        ...

    def place(self, number: int, offset: int) -> tuple[str, str, int]:
        """Name of the document at a byte of an example's content; the file, and the byte in it."""
        ...


class Windows:
    """Windows of a tokens folder."""

    def __init__(self, folder: Path, length: int) -> None:
        self.shard = TokenShard(folder, "train")
        self._length = length
        self._encoder: Any = None
        self._without_text = False
        self._itemsize = int(np.dtype(self.shard.tokens.dtype).itemsize)

    def __len__(self) -> int:
        return len(self.shard) // self._length

    def content(self, number: int) -> bytes:
        """The tokens, of 32 bits each whatever their width in the shard."""
        start = number * self._length
        return self.shard.tokens[start : start + self._length].astype("<u4").tobytes()

    def rows(self, number: int) -> Iterator[tuple[str, int, int, str]]:
        """The documents that a window has a part of."""
        start = number * self._length
        stop = start + self._length
        first, last = self.shard.document_at(start), self.shard.document_at(stop - 1)
        names = self._names(first, min(last, first + MAX_DOCUMENTS - 1))
        ends = self.shard.document_ends
        for document, name in enumerate(names, start=first):
            begin = max(start, int(ends[document - 1]) if document else 0)
            end = min(stop, int(ends[document]))
            yield name, begin - start, end - begin, self._text(begin, end)

    def place(self, number: int, offset: int) -> tuple[str, str, int]:
        """The document, the shard's file, and the byte in it."""
        token, byte = number * self._length + offset // 4, min(offset % 4, self._itemsize - 1)
        document = self.shard.document_at(token)
        name = next(iter(self._names(document, document)), "")
        before = 0
        for file in self.shard.entry.files():
            if token < before + file.tokens:
                return name, file.file, (token - before) * self._itemsize + byte
            before += file.tokens
        return name, "", 0

    def _names(self, first: int, last: int) -> list[str]:
        """Names of documents by their numbers, which stand in for them where an older version wrote none."""
        file = self.shard.path / self.shard.entry.names
        if not self.shard.entry.names or Path(self.shard.entry.names).name != self.shard.entry.names:
            return [f"document {number + 1}" for number in range(first, last + 1)]
        found = []
        with open_regular(file) as lines:
            for number, line in enumerate(lines):
                if number > last:
                    break
                if number >= first:
                    found.append(str(json.loads(line)))
        return found

    def _text(self, begin: int, end: int) -> str:
        if self._encoder is None and not self._without_text:
            try:
                self._encoder = load_encoder(self.shard.tokenizer)[0]
            except OperatorError:  # the names say enough
                self._without_text = True
        if self._encoder is None:
            return ""
        ids = self.shard.tokens[begin : min(end, begin + SHOWN_CHARACTERS)].tolist()
        return str(self._encoder.decode([one for one in ids if one != self.shard.eos_id]))[:SHOWN_CHARACTERS]


class LabelledRows:
    """Rows of a finetune stage, each an example, or packed into sequences."""

    def __init__(self, stage: FinetuneFields, data: Path, model: Path, first_start: str) -> None:
        view, rules = view_and_rules(stage, model, first_start)
        source = source_of_stage(stage, data, str(data))
        self._rows: list[tuple[str, int, bytes]] = []
        located = read_rows(source, "train", ReadCounts())
        for row in examples_of(located, view, rules, LabelCounts(), skip_refused=skips_refused(stage)):
            content = np.array([row.ids, row.labels], dtype="<i8").tobytes()
            self._rows.append((row.where, len(row.ids), hashlib.sha256(content).digest()))
        lengths = [length for _, length, _ in self._rows]
        self._packs = packs_of(lengths, stage.max_length) if stage.packing else [[row] for row in range(len(lengths))]
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self._packs)

    def content(self, number: int) -> bytes:
        """The digests of its rows."""
        return b"".join(self._rows[row][2] for row in self._packs[number])

    def rows(self, number: int) -> Iterator[tuple[str, int, int, str]]:
        """The rows of an example by their places."""
        at = 0
        for row in self._packs[number]:
            where, length, _ = self._rows[row]
            yield where, at, length, ""
            at += length

    def place(self, number: int, offset: int) -> tuple[str, str, int]:
        """The row."""
        return self._rows[self._packs[number][offset // 32]][0], "", 0


class Stream:
    """The examples of each step of a training.

    Raises:
        OperatorError: its data or its tokenizer cannot be read.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._made: dict[str, tuple[TrainingFields, Examples]] = {}
        self._epoch: tuple[str, int, list[int]] = ("", -1, [])

    @property
    def last(self) -> int:
        """The last step."""
        return max(segment.last for segment in self._segments)

    def step(self, number: int) -> tuple[Examples, list[list[int]]]:
        """The examples of a step by micro-batch.

        Raises:
            OperatorError: the training has not done the step.
        """
        segment = next((one for one in self._segments if one.first <= number <= one.last), None)
        if segment is None:
            raise OperatorError(f"the training has not done step {number}", f"its steps are 1 to {self.last}")
        key = json.dumps([segment.stage, segment.data, segment.model], sort_keys=True)
        if key not in self._made:
            self._made[key] = _examples_of(segment)
        stage, examples = self._made[key]
        epoch, at = divmod(number - 1, steps_per_epoch(stage, len(examples)))
        if self._epoch[:2] != (key, epoch):
            self._epoch = (key, epoch, _order(stage, examples, epoch))
        batch, window = stage.per_device_train_batch_size, stage.rows_per_step
        mine = self._epoch[2][at * window : (at + 1) * window]
        return examples, [mine[start : start + batch] for start in range(0, len(mine), batch)]


def rows_of_step(segments: Sequence[Segment], step: int) -> list[StepRow]:
    """The documents or rows that a step read, in order."""
    examples, micro_batches = Stream(segments).step(step)
    return [
        StepRow(micro_batch=number, number=example, name=name, first_token=first, tokens=tokens, text=text)
        for number, batch in enumerate(micro_batches, start=1)
        for example in batch
        for name, first, tokens, text in examples.rows(example)
    ]


def first_difference(one: Sequence[Segment], other: Sequence[Segment]) -> Difference | None:
    """The first step at which two trainings read other tokens, up to the last step of the shorter one."""
    streams = Stream(one), Stream(other)
    same: dict[tuple[int, int], bool] = {}
    for number in range(1, min(stream.last for stream in streams) + 1):
        (first, mine), (second, theirs) = (stream.step(number) for stream in streams)
        if [len(batch) for batch in mine] != [len(batch) for batch in theirs]:
            return Difference(step=number, why="the steps have other numbers of examples")
        for left, right in zip(_flat(mine), _flat(theirs), strict=True):
            if (left, right) not in same:
                if len(same) > _REMEMBERED:
                    same.clear()
                same[left, right] = first.content(left) == second.content(right)
            if not same[left, right]:
                return _difference(number, first, left, second, right)
    return None


def _difference(step: int, first: Examples, left: int, second: Examples, right: int) -> Difference:
    one, two = first.content(left), second.content(right)
    common = min(len(one), len(two))
    at = next((n for n in range(common) if one[n] != two[n]), max(common - 1, 0))
    places = [first.place(left, at), second.place(right, at)]
    why = "the order of the examples differs" if left != right else "the tokens differ"
    return Difference(
        step=step,
        why=why,
        names=[place[0] for place in places],
        files=[place[1] for place in places],
        bytes=[place[2] for place in places],
    )


def _flat(batches: list[list[int]]) -> list[int]:
    return [example for batch in batches for example in batch]


def _examples_of(segment: Segment) -> tuple[TrainingFields, Examples]:
    stage = stage_of(segment.stage)
    assert isinstance(stage, TrainingFields), "the caller names a stage that trains"
    data = Path(segment.data)
    for field, place in (("data", data), ("model", Path(segment.model or data))):
        if not place.exists():
            raise OperatorError(
                f"{field} — {place} does not exist any more, and the training read it",
                "restore it, or name another run",
            )
    if is_tokens_folder(data):
        return stage, Windows(data, stage.max_length)
    if not isinstance(stage, FinetuneFields) or segment.model is None:
        raise OperatorError(
            f"the rows behind a step of a {stage.kind} stage are not known", "name a pretrain or finetune stage"
        )
    return stage, LabelledRows(stage, data, Path(segment.model), segment.first_start)


def _order(stage: TrainingFields, examples: Examples, epoch: int) -> list[int]:
    """The order of an epoch, as the engine has it."""
    by_length = isinstance(stage, FinetuneFields) and stage.train_sampling_strategy != "random"
    if by_length and isinstance(examples, LabelledRows):
        window = stage.rows_per_step
        return grouped_by_length(examples.lengths, window, stage.seed, epoch)
    return first_examples(stage.seed, epoch, len(examples), len(examples))
