"""Loss and perplexity in `cockpit evaluate`: of a model folder, of an adapter, or of a GGUF file, on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engines.data.documents import is_text_folder
from engines.data.door import DataSource, ReadCounts, splits_in
from engines.data.shards import TokenShard, is_tokens_folder
from engines.evaluate.evaluate import Score, check_tokenizer, make_batches, score
from engines.evaluate.gguf_loss import NameOf, score_gguf
from engines.evaluate.gguf_vocabulary import GgufVocabulary
from engines.evaluate.model import LoadedModel, Warn, load_tokenizer
from engines.inputs.data_place import UNSPLIT
from engines.labels.row import LabelRules
from engines.labels.vocabulary import TokenizerView, view_of
from engines.llama.gguf_file import read_gguf
from engines.llama.library import NativeError
from engines.llama.process import LlamaProcess
from engines.training.loss import Batches
from recipes.problems import OperatorError, printable

_VOCABULARY_TOKENS = 64
_TEST = "test"


@dataclass(frozen=True)
class LossData:
    """What a loss is computed on.

    Attributes:
        place: rows, texts or tokens: a file or a folder.
        max_length: tokens of the longest row, and of a window.
        max_tokens: stop after so many scored tokens: of tokens, windows at equal distances from the whole split.
        batch_size: rows that a folder's model computes together.
        template: the text of a chat template; empty for the model's own.
        moment: the local time that a template sees, in ISO form.
    """

    place: Path
    max_length: int
    max_tokens: int
    batch_size: int
    template: str
    moment: str

    @property
    def rules(self) -> LabelRules:
        """How its rows are labelled: as those of an evaluate stage with its defaults."""
        return LabelRules(max_length=self.max_length, template=self.template, moment=self.moment)

    @property
    def source(self) -> DataSource:
        """Its rows; documents of a text folder are texts, whatever they begin with."""
        return DataSource(self.place, format="text" if is_text_folder(self.place) else "auto")

    @property
    def split(self) -> str:
        """A file is meant whole; of a folder with splits, the test split."""
        if self.place.is_file():
            return UNSPLIT
        return _TEST if is_tokens_folder(self.place) or UNSPLIT not in splits_in(self.source) else UNSPLIT


@dataclass(frozen=True)
class LossFile:
    """A GGUF file whose loss is computed.

    Attributes:
        path: the file.
        adapter: a GGUF adapter over it.
        tokenizer: the folder of the model from which it was made; None for the file's own vocabulary.
        threads: CPU threads of llama.cpp.
    """

    path: Path
    adapter: Path | None
    tokenizer: Path | None
    threads: int


def loss_of_folder(loaded: LoadedModel, data: LossData, warn: Warn, progress: Callable[[int, int], None]) -> Score:
    """The loss of a loaded model.

    Args:
        loaded: the model.
        data: the rows.
        warn: takes what the operator should know.
        progress: takes scored and all tokens.

    Raises:
        OperatorError: the rows cannot be used.
    """
    batches = _batches(loaded.view, data, partial(check_tokenizer, loaded), warn)
    return score(loaded, batches, lambda tokens: progress(tokens, batches.scored_tokens), warn)


def loss_of_file(file: LossFile, data: LossData, warn: Warn, progress: Callable[[int, int], None]) -> Score:
    """The loss of a GGUF file; arguments and errors as for `loss_of_folder`.

    With the tokenizer of its model the rows are the folder's, and the file's tokens are compared with the tokenizer's.
    """
    names: NameOf | None = None
    with ExitStack() as open_ones:
        if file.tokenizer is not None:
            tokenizer = load_tokenizer(file.tokenizer, warn)
            view: TokenizerView = view_of(tokenizer)
            names = tokenizer.convert_ids_to_tokens
        elif is_tokens_folder(data.place):
            raise OperatorError(
                "--data — token shards need the tokenizer of the model from which the file was made",
                "give --tokenizer FOLDER",
            )
        else:
            view = GgufVocabulary(read_gguf(file.path), open_ones.enter_context(_opened(file)))
        batches = _batches(view, data, _any_tokenizer, warn)
    return score_gguf(
        file.path,
        batches,
        threads=file.threads,
        name_of=names,
        adapter=file.adapter,
        on_progress=lambda tokens: progress(tokens, batches.scored_tokens),
    )


def metrics_of(found: Score) -> dict[str, Any]:
    """The metrics of a loss."""
    return {"loss": found.loss, "perplexity": found.perplexity, "scored_tokens": found.tokens}


def _opened(file: LossFile) -> LlamaProcess:
    try:
        return LlamaProcess(file.path, _VOCABULARY_TOKENS, file.threads)
    except NativeError as error:
        name = printable(str(file.path), 400)
        raise OperatorError(f"llama.cpp cannot open {name}: {printable(str(error), 600)}") from error


def _any_tokenizer(_shard: TokenShard) -> None:
    """The ids of shards are compared with the file's vocabulary when they are scored."""


def _batches(view: TokenizerView, data: LossData, check: Callable[[TokenShard], None], warn: Warn) -> Batches:
    counts = ReadCounts()
    batches = make_batches(
        view,
        data.source,
        check_tokens=check,
        split=data.split,
        rules=data.rules,
        batch_size=data.batch_size,
        max_tokens=data.max_tokens,
        spread=True,
        warn=warn,
        counts=counts,
    )
    for note in counts.notes():
        warn(note)
    return batches
