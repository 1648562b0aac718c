"""A GGUF file, with or without a GGUF adapter, that talks: llama.cpp in its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from engines.chatting.lines import Sampling
from engines.chatting.talk import Show, Stopped
from engines.evaluate.gguf_answers import GgufAnswers
from engines.evaluate.gguf_files import check_gguf_files
from engines.judging.task import Message, Task
from engines.llama.drawing import DrawRules
from engines.llama.gguf_file import read_gguf
from engines.stage_file import present_moment
from recipes.file_types import file_type_of_id

BATCH_TOKENS = 128
"""Tokens of a prompt that are read at once: an answer can be stopped between two such parts."""
LEAST_CONTEXT = 2048
"""Tokens of the first context; a longer conversation opens a larger one."""


class GgufTalk:
    """Answers of a GGUF file; prompts are encoded as an evaluation encodes them.

    The keys and values of a conversation stay in llama.cpp's cache, so that a next turn reads its new tokens only.
    """

    runtime = "llama.cpp"

    def __init__(
        self, file: Path, *, threads: int, adapter: Path | None = None, template: str = "", plain: bool = False
    ) -> None:
        """Open a file.

        Args:
            file: the GGUF file.
            threads: CPU threads.
            adapter: a GGUF adapter over it.
            template: the text of a chat template; empty for the file's own.
            plain: prompts are texts to continue; so are they where there is no template.

        Raises:
            OperatorError: a file is missing, or llama.cpp cannot load it.
        """
        check_gguf_files(file, adapter)
        found = read_gguf(file)
        self.plain = plain or not (template or found.scalar("tokenizer.chat_template", ""))
        self.has_adapter = adapter is not None
        number = found.scalar("general.file_type")
        kind = file_type_of_id(number) if isinstance(number, int) else None
        self.dtype = kind.name if kind is not None else "GGUF"
        self._answers = GgufAnswers(
            file,
            sha256="",
            limit=1,
            threads=threads,
            adapter=adapter,
            template=template,
            plain=self.plain,
            moment=present_moment(),
            n_batch=BATCH_TOKENS,
        )
        self.context, self.ends = self._answers.longest, self._answers.ends

    @property
    def workers(self) -> tuple[int, ...]:
        """As `Talk.workers`."""
        return (os.getpid(), self._answers.with_room(0).pid)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """As `Talk.encode`."""
        return self._answers.encode(Task("", "the conversation", tuple(messages), "", ()))

    def decode(self, ids: Sequence[int]) -> str:
        """As `Talk.decode`."""
        return self._answers.with_room(0).text(ids)

    def generate(self, ids: list[int], sampling: Sampling, *, adapter: bool, show: Show, stopped: Stopped) -> None:
        """As `Talk.generate`."""
        llama = self._answers.with_room(self._room(len(ids) + sampling.max_new_tokens))
        rules = DrawRules(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
        )
        llama.begin(ids, rules, adapter=adapter or not self.has_adapter)
        written = list(ids)
        for _ in range(sampling.max_new_tokens):
            while llama.feed(written) < len(written):
                if stopped():
                    return
            token = llama.draw()
            show(token)
            if stopped() or token in self.ends:
                return
            written.append(token)

    def close(self) -> None:
        """As `Talk.close`."""
        self._answers.close()

    def _room(self, tokens: int) -> int:
        """The context for so many tokens: a power of two times the first one, so that few conversations open it
        again."""
        room = LEAST_CONTEXT
        while room < tokens:
            room *= 2
        return max(tokens, min(room, self.context))
