"""Loss and perplexity of a GGUF file, with llama.cpp's kernels: the rows, labels and sums of a model folder's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from engines.evaluate.evaluate import Score, perplexity
from engines.forward.label_loss import IGNORED
from engines.llama.gguf_file import read_gguf
from engines.llama.library import NativeError
from engines.llama.process import LlamaProcess
from engines.training.loss import Batches
from recipes.file_types import file_type_of_id
from recipes.problems import OperatorError, printable

NameOf = Callable[[int], str]
"""The text of a token in the tokenizer that made the ids."""
_BLANK = "▁"
"""What a piece has in place of a blank; the conversion writes an added token with the blank."""


def score_gguf(
    file: Path,
    batches: Batches,
    *,
    threads: int,
    name_of: NameOf | None = None,
    adapter: Path | None = None,
    on_progress: Callable[[int], None] = lambda _tokens: None,
    waiting: Callable[[], None] | None = None,
) -> Score:
    """Token-weighted loss over all batches, one row after another, each from an empty cache.

    Logits are llama.cpp's float32; their log-softmax and the sum are float64.

    Args:
        file: the GGUF file.
        batches: rows with labels, as a folder's model is scored on them.
        threads: CPU threads of llama.cpp.
        name_of: gives the texts of ids, which must be the file's own; None if the file's vocabulary made the ids.
        adapter: a GGUF adapter over the file.
        on_progress: takes the tokens scored so far.
        waiting: called now and then; what it raises ends the evaluation.

    Raises:
        OperatorError: llama.cpp cannot open the file, or its vocabulary is not that of the ids.
    """
    name = printable(str(file), 400)
    try:
        llama = LlamaProcess(file, max(batches.longest, 2), threads, adapter)
    except NativeError as error:
        raise OperatorError(f"llama.cpp cannot open {name}: {printable(str(error), 600)}") from error
    total, tokens, known = 0.0, 0, set[int]()
    with llama:
        for batch in batches:
            for row in batch.examples():
                new = set(row.input_ids) - known
                if name_of is not None and new:
                    _check_names(llama, sorted(new), name_of, name)
                known |= new
                places = [at for at, label in enumerate(row.labels) if at and label != IGNORED]
                if places:
                    total += sum(llama.losses(row.input_ids, places, waiting=waiting))
                    tokens += len(places)
            on_progress(tokens)
        loss = total / tokens if tokens else float("nan")
        protocol = f"{batches.protocol}, {kind_of(file)} weights in llama.cpp, {llama.cache_type} cache"
    return Score(loss, perplexity(loss), tokens, protocol, batches.counts)


def kind_of(file: Path) -> str:
    """The file type of a GGUF file, as its name says it: Q4_K_M."""
    kind = file_type_of_id(int(read_gguf(file).scalar("general.file_type", -1)))
    return "unknown" if kind is None else kind.name


def _check_names(llama: LlamaProcess, ids: Iterable[int], name_of: NameOf, file: str) -> None:
    """Refuse a file whose tokens are others: the loss would be that of other texts."""
    asked = list(ids)
    if max(asked) >= llama.vocab_size:
        raise OperatorError(
            f"{file} has {llama.vocab_size} tokens, and the rows have a token {max(asked)}",
            "give the model from which the file was made",
        )
    for token, (found, _) in zip(asked, llama.pieces(asked), strict=True):
        wanted = name_of(token)
        if found.replace(_BLANK, " ") != wanted.replace(_BLANK, " "):
            raise OperatorError(
                f"{file} has another vocabulary than the model: its token {token} is '{printable(found, 40)}', the"
                f" model's is '{printable(wanted, 40)}'",
                "give the model from which the file was made",
            )
