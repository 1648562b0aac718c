"""Answers of a GGUF file, with llama.cpp in its own process, one prompt after another, as a server would."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.chat.rendering import Chat, render_each
from engines.evaluate.asking import Waiting
from engines.judging.answers import Kept
from engines.judging.task import Task
from engines.llama.drawing import GREEDY, DrawRules
from engines.llama.gguf_file import part_paths, read_gguf
from engines.llama.library import NativeError
from engines.llama.process import LlamaProcess
from engines.llama.vocab_rules import adds_begin
from recipes.problems import OperatorError, printable

_WARM_UP_TOKENS = 2
_VOCABULARY_TOKENS = 64
"""Context of the process that only tokenizes, before the longest prompt is known."""


class GgufAnswers:
    """A GGUF file, with or without a GGUF adapter, that answers tasks."""

    batch_size = 1

    def __init__(
        self,
        file: Path,
        *,
        sha256: str,
        limit: int,
        threads: int,
        adapter: Path | None = None,
        adapter_sha256: str = "",
        template: str = "",
        plain: bool = False,
        moment: str = "",
        n_batch: int | None = None,
        rules: DrawRules = GREEDY,
    ) -> None:
        """Make a file ready to answer; arguments as for `FolderAnswers`.

        `n_batch` is the most tokens of a prompt that are read at once; None for all of them.

        Raises:
            OperatorError: the file cannot be read, or has no chat template and `plain` is not set.
            NativeError: llama.cpp cannot load it.
        """
        self.limit, self._plain, self._moment, self._threads = limit, plain, moment, threads
        self._file, self._adapter, self._n_batch, self._rules = file, adapter, n_batch, rules
        found = read_gguf(file)
        family = found.scalar("general.architecture", "")
        self.longest = int(found.scalar(f"{family}.context_length", 1 << 30))
        self._template = template or str(found.scalar("tokenizer.chat_template", "") or "")
        usual = adds_begin(str(found.scalar("tokenizer.ggml.model", "")), str(found.scalar("tokenizer.ggml.pre", "")))
        self._adds_begin = bool(found.scalar("tokenizer.ggml.add_bos_token", usual))
        if not plain and not self._template:
            raise OperatorError(
                f"{printable(str(file), 400)} has no chat template, so it cannot answer conversations",
                "give --chat-template FILE, or --plain if its prompts are texts to continue",
            )
        self._size_bytes = sum(part.stat().st_size for part in (*part_paths(file), *([adapter] if adapter else [])))
        self._rss_bytes = 0
        self._llama: LlamaProcess | None = None
        vocabulary = self._open(_VOCABULARY_TOKENS)
        self._begin, self._end = vocabulary.begin_and_end()
        self.ends = vocabulary.ends()
        shown = "plain" if plain else hashlib.sha256(self._template.encode()).hexdigest()
        self.identity: Mapping[str, Any] = {
            "model": sha256,
            "adapter": adapter_sha256,
            "runtime": "llama.cpp",
            "library": {key: value for key, value in vocabulary.library.items() if key != "path"},
            "cache": vocabulary.cache_type,
            "template": shown,
            "moment": moment,
            "sampling": rules.stated(),
            "max_new_tokens": limit,
        }

    def encode(self, task: Task) -> list[int]:
        """Ids of a prompt: the file's template renders it, and llama.cpp tokenizes it as for its server.

        Raises:
            OperatorError: the template does not render the conversation.
        """
        assert self._llama is not None
        if self._plain:
            text = "\n".join(str(message.get("content") or "") for message in task.messages)
            return self._llama.tokenize(text, parse_special=False, add_special=True)
        special = {"bos_token": self._begin, "eos_token": self._end}
        chat = Chat(task.messages, opened=True, tools=task.tools)
        made = render_each(self._template, special, [chat], marked=False, moment=self._moment)[0]
        if made.refused is not None:
            raise OperatorError(
                f"{task.where}: the chat template does not render this conversation: {printable(made.refused, 300)}",
                "correct the row, or leave it out",
            )
        text = made.text.removeprefix(self._begin) if self._adds_begin and self._begin else made.text
        return self._llama.tokenize(text, parse_special=True, add_special=True)

    def prepare(self, longest_prompt: int) -> None:
        """Open a context for the longest prompt and its answer; the first use of the file's weights does not count."""
        llama = self.with_room(longest_prompt + self.limit)
        llama.generate([*llama.tokenize("a", parse_special=False)], _WARM_UP_TOKENS, (), last_only=True)

    def with_room(self, tokens: int) -> LlamaProcess:
        """llama.cpp's process, with a context of at least so many tokens."""
        assert self._llama is not None
        if self._llama.n_ctx < tokens:
            self._llama.close()
            self._open(tokens)
        return self._llama

    def answer(self, tasks: Sequence[tuple[Task, list[int]]], waiting: Waiting) -> list[Kept]:
        """Answers to tasks, one after another."""
        return [self._one(task, ids, waiting) for task, ids in tasks]

    def _one(self, task: Task, ids: list[int], waiting: Waiting) -> Kept:
        assert self._llama is not None
        rules = self._rules.of_task(task.key)
        made = self._llama.generate(ids, self.limit, self.ends, last_only=True, rules=rules, waiting=waiting)
        self._rss_bytes = max(self._rss_bytes, made.rss_bytes)
        ended = made.ids[-1] in self.ends
        return Kept(
            key=task.key,
            answer=self._llama.text(made.ids[:-1] if ended else made.ids),
            ended=ended,
            prompt_tokens=len(ids),
            tokens=len(made.ids),
            first_token_s=made.prompt_s,
            latency_s=made.prompt_s + made.generation_s,
            ids=made.ids,
        )

    def after(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of the token after a sequence, float32 [vocabulary]."""
        assert self._llama is not None
        return self._llama.last_logits(ids)

    def text(self, token: int) -> str:
        """The text of a token, control tokens by their names."""
        assert self._llama is not None
        return self._llama.text([token], special=True)

    def measured(self) -> dict[str, float]:
        """Largest resident memory of llama.cpp's process after an answer, mapped weights included, and the size of the
        files."""
        found = {"size_bytes": float(self._size_bytes)}
        return {**found, "peak_rss_bytes": float(self._rss_bytes)} if self._rss_bytes else found

    def close(self) -> None:
        """End llama.cpp's process; safe to call twice."""
        if self._llama is not None:
            self._llama.close()

    def _open(self, n_ctx: int) -> LlamaProcess:
        try:
            n_batch = None if self._n_batch is None else min(self._n_batch, n_ctx)
            self._llama = LlamaProcess(self._file, n_ctx, self._threads, self._adapter, n_batch)
        except NativeError as error:
            raise OperatorError(f"llama.cpp cannot open the file: {printable(str(error), 600)}") from error
        return self._llama
