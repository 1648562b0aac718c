"""A GGUF file in llama.cpp, in a separate process: tokens, logits and greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engines.llama.drawing import DrawRules
from engines.llama.worker_process import WorkerProcess


@dataclass(frozen=True)
class Generation:
    """A greedy answer, the seconds for its prompt and for its tokens, and the process's resident memory after it."""

    ids: list[int]
    prompt_s: float
    generation_s: float
    rss_bytes: int


class LlamaProcess:
    """A loaded GGUF file. A crash of the native process raises a `NativeError` with its last lines.

    Attributes:
        vocab_size: number of tokens, the width of the logits.
        cache_type: type of the key and value cache, "f32" or "f16".
        library: record of the library.
        n_ctx: longest sequence, in tokens.
    """

    def __init__(
        self, gguf_path: Path, n_ctx: int, threads: int, adapter: Path | None = None, n_batch: int | None = None
    ) -> None:
        """Load a file for sequences of up to `n_ctx` tokens, with `threads` CPU threads and an optional GGUF adapter.

        `n_batch` is the most tokens of one decode, for which llama.cpp reserves memory; None for `n_ctx`.

        Raises:
            NativeError: the library is missing, or refuses the file.
        """
        self.n_ctx = n_ctx
        self._worker = WorkerProcess("engines.llama.logits_worker", threads)
        try:
            over = None if adapter is None else str(adapter)
            request = {
                "open": str(gguf_path), "n_ctx": n_ctx, "threads": threads, "adapter": over, "n_batch": n_batch,
            }  # fmt: skip
            answer, _ = self._worker.ask(request)
        except BaseException:
            self._worker.close()
            raise
        self.vocab_size: int = answer["vocab_size"]
        self.cache_type: str = answer["cache_type"]
        self.library: dict[str, str] = answer["library"]

    @property
    def pid(self) -> int:
        """The native process's id."""
        return self._worker.pid

    def tokenize(self, text: str, parse_special: bool, add_special: bool = False) -> list[int]:
        """Ids of a text.

        Args:
            text: any text.
            parse_special: read the names of control tokens in the text as control tokens.
            add_special: add the begin and end tokens that the file asks for, as llama.cpp does for every prompt.
        """
        request = {"tokenize": text, "parse_special": parse_special, "add_special": add_special}
        answer, _ = self._worker.ask(request)
        return list(answer["ids"])

    def ends(self) -> list[int]:
        """Every token at which llama.cpp ends an answer."""
        answer, _ = self._worker.ask({"ends": True})
        return list(answer["ids"])

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each token of one sequence, from an empty cache, float32 [tokens, vocab_size]."""
        _, data = self._worker.ask({"logits": [int(token) for token in ids]})
        return np.frombuffer(data, "<f4").reshape(len(ids), self.vocab_size)

    def last_logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after the last token of one sequence, from an empty cache, float32 [vocab_size]."""
        _, data = self._worker.ask({"last_logits": [int(token) for token in ids]})
        return np.frombuffer(data, "<f4")

    def losses(
        self, ids: Sequence[int], places: Sequence[int], *, waiting: Callable[[], None] | None = None
    ) -> list[float]:
        """Negative log likelihoods of the tokens at `places` of a sequence, in nats; place 0 has no context.

        Args:
            ids: the sequence.
            places: ascending, each at least 1.
            waiting: as for `generate`.
        """
        request = {"losses": [int(token) for token in ids], "places": list(places)}
        _, data = self._worker.ask(request, waiting=waiting)
        return [float(value) for value in np.frombuffer(data, "<f8")]

    def pieces(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """The text and the attributes (`engines.llama.vocab_rules`) of tokens of the vocabulary."""
        answer, _ = self._worker.ask({"pieces": list(ids)})
        return [(str(text), int(attributes)) for text, attributes in answer["pieces"]]

    def text(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of ids; `special`: with the names of control tokens."""
        answer, _ = self._worker.ask({"text": list(ids), "special": special})
        return str(answer["text"])

    def begin_and_end(self) -> tuple[str, str]:
        """The names of the tokens that begin and end a text; empty for a token that the file does not have."""
        answer, _ = self._worker.ask({"marks": True})
        return str(answer["begin"]), str(answer["end"])

    def generate(
        self,
        ids: Sequence[int],
        limit: int,
        stops: Sequence[int],
        *,
        last_only: bool = False,
        rules: DrawRules | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> Generation:
        """Continuation of a prompt by at most `limit` tokens, ended by any of `stops`.

        Args:
            ids: the prompt.
            limit: most new tokens.
            stops: tokens that end the answer.
            last_only: compute the prompt's logits after its last token only, as a server does.
            rules: how tokens are drawn; None for the likeliest ones.
            waiting: called several times a second; after an exception from it this process must be closed.
        """
        request = {"generate": list(ids), "limit": limit, "stops": list(stops), "last_only": last_only}
        request["rules"] = asdict(rules or DrawRules())
        answer, _ = self._worker.ask(request, waiting=waiting)
        return Generation(**answer)

    def begin(self, ids: Sequence[int], rules: DrawRules, *, adapter: bool) -> None:
        """Begin an answer that is drawn token by token, with `feed` and `draw`.

        Args:
            ids: the prompt.
            rules: how tokens are drawn.
            adapter: with the adapter, if there is one.
        """
        self._worker.ask({"begin": list(ids), "rules": asdict(rules), "adapter_on": adapter})

    def feed(self, ids: Sequence[int]) -> int:
        """Read the next part of a conversation; returns how many of its tokens are read now (`LlamaModel.feed`)."""
        answer, _ = self._worker.ask({"feed": list(ids)})
        return int(answer["read"])

    def draw(self) -> int:
        """The token after what was fed."""
        answer, _ = self._worker.ask({"draw": True})
        return int(answer["id"])

    def close(self) -> None:
        """End the native process."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
