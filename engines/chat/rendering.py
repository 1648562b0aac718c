"""Renders conversations with a tokenizer's chat template, in a worker process that is started once.

The text is the one that transformers' `apply_chat_template` gives: the worker calls the same function. A template that
computes for ever, or that fills the memory, ends the worker and not the caller; it is not tried twice.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engines.chat.limits import CPU_SECONDS, MEMORY_BYTES, TEXT_CHARACTERS
from engines.llama.library import NativeError
from engines.llama.worker_process import WorkerProcess
from recipes import quantities
from recipes.problems import OperatorError, printable

Message = Mapping[str, Any]
Waiting = Callable[[], None]
_WORKER = "engines.chat.worker"
_TOO_LARGE = {
    "memory": f"needs more than {quantities.size(MEMORY_BYTES)} of memory",
    "text": f"renders more than {TEXT_CHARACTERS} characters",
}


class TemplateError(OperatorError):
    """A chat template cannot render a conversation."""


class TemplateRefusedError(TemplateError):
    """The template raised an error, or the tokenizer has no template to use."""


class TemplateLimitError(TemplateError):
    """The template computed for too long, or needed too much memory."""


@dataclass(frozen=True)
class Chat:
    """A conversation to render; `opened`: the text ends where the assistant's answer begins.

    `tools` are JSON schemas of functions that this conversation may call.
    """

    messages: Sequence[Message]
    opened: bool = False
    tools: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Rendered:
    """One conversation as text, or the reason in `refused` why the template does not render it.

    `spans`: what the template marks as the assistant's, in characters.
    """

    text: str
    spans: list[tuple[int, int]]
    refused: str | None = None


def start_renderer() -> None:
    """Start the process that renders, so that it is ready when the first conversation comes.

    Call it in a thread that lives as long as conversations are rendered: the process ends with it.
    """
    _RENDERER.start()


def render(
    tokenizer: Any, chats: Sequence[Chat], *, tools: list[Any] | None = None, waiting: Waiting | None = None
) -> list[str]:
    """The text of each conversation.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        chats: the conversations; many in one call cost less than one call each.
        tools: JSON schemas of functions, for the template.
        waiting: called now and then until the texts are there; what it raises ends the wait.

    Raises:
        TemplateRefusedError: the template raised an error, or the tokenizer has no template.
        TemplateLimitError: the template computed for too long, or needed too much memory.
    """
    return render_template(
        template_of(tokenizer, tools), tokenizer.special_tokens_map, chats, tools=tools, waiting=waiting
    )


def render_template(
    template: str,
    special: Mapping[str, Any],
    chats: Sequence[Chat],
    *,
    tools: list[Any] | None = None,
    waiting: Waiting | None = None,
) -> list[str]:
    """The text of each conversation, by a template's own text; `special`: the special tokens that it sees, by name.

    Raises:
        TemplateError: as `render`.
    """
    texts: list[str] = _RENDERER.ask(_request(template, special, chats, tools, marked=False), waiting)["texts"]
    return texts


def render_each(
    template: str,
    special: Mapping[str, Any],
    chats: Sequence[Chat],
    *,
    marked: bool,
    moment: str = "",
    waiting: Waiting | None = None,
) -> list[Rendered]:
    """Each conversation as text; one that the template refuses does not stop the others.

    Args:
        template: the chat template's own text.
        special: the special tokens that it sees, by name.
        chats: the conversations.
        marked: the template has `generation` marks, and their spans are wanted.
        moment: the local time that the template sees, in ISO form; empty for the present one.
        waiting: as for `render`.

    Raises:
        TemplateLimitError: the template computed for too long, or needed too much memory.
    """
    if not chats:
        return []
    request = {**_request(template, special, chats, None, marked=marked), "each": True, "moment": moment}
    answer = _RENDERER.ask(request, waiting)
    return [
        Rendered(text, [(start, end) for start, end in spans], refused)
        for text, spans, refused in zip(answer["texts"], answer["spans"], answer["errors"], strict=True)
    ]


class _Renderer:
    """The worker of this process, started at the first request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: WorkerProcess | None = None
        self._owner = 0
        self._failed: dict[str, str] = {}

    def start(self) -> None:
        with self._lock:
            self._running()

    def ask(self, request: dict[str, Any], waiting: Waiting | None) -> dict[str, Any]:
        with self._lock:
            if request["template"] in self._failed:
                raise _limit_error(self._failed[request["template"]])
            answer = self._answer(request, waiting)
        if "refused" in answer:
            raise TemplateRefusedError(
                f"the chat template does not render a conversation: {printable(answer['refused'], 400)}",
                "change the conversation, or the model's chat_template.jinja",
            )
        return answer

    def _answer(self, request: dict[str, Any], waiting: Waiting | None) -> dict[str, Any]:
        for again in (True, False):
            worker = self._running()
            try:
                answer, _ = worker.ask(request, waiting=waiting)
            except NativeError as error:
                self._drop()
                if worker.ended_by == signal.SIGPROF:
                    raise self._failure(request, f"took more than {quantities.duration(CPU_SECONDS)}") from error
                if not again:
                    raise TemplateRefusedError(f"the process that renders chat templates failed: {error}") from error
                continue  # the worker ends with the thread that started it, for example
            except BaseException:
                self._drop()  # the answer to this request must not be read as that to the next
                raise
            if "too_large" in answer:
                self._drop()
                raise self._failure(request, _TOO_LARGE[answer["too_large"]])
            return answer
        raise AssertionError

    def _running(self) -> WorkerProcess:
        if self._worker is None or self._owner != os.getpid():  # a forked process must not share its parent's worker
            self._worker, self._owner = WorkerProcess(_WORKER, threads=1), os.getpid()
            atexit.register(self._leave, os.getpid())
        return self._worker

    def _leave(self, owner: int) -> None:
        """End the worker when its process ends; a forked process leaves it alone."""
        if os.getpid() == owner:
            self._drop()

    def _drop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _failure(self, request: dict[str, Any], what: str) -> TemplateLimitError:
        self._failed[request["template"]] = what
        return _limit_error(what)


def _limit_error(what: str) -> TemplateLimitError:
    return TemplateLimitError(
        f"the model's chat template {what} for one conversation and was stopped",
        "repair its chat_template.jinja, or use another model",
    )


def template_of(tokenizer: Any, tools: list[Any] | None = None) -> str:
    """The chat template that transformers uses: the only one, or the one named "default" or "tool_use".

    Raises:
        TemplateRefusedError: the tokenizer has no template.
    """
    try:
        template: str = tokenizer.get_chat_template(None, tools)
    except ValueError as error:
        raise TemplateRefusedError(
            f"the model's tokenizer has no chat template to use: {printable(str(error), 200)}",
            "use a model whose folder has chat_template.jinja",
        ) from error
    return template


def _request(
    template: str, special: Mapping[str, Any], chats: Sequence[Chat], tools: list[Any] | None, *, marked: bool
) -> dict[str, Any]:
    return {
        "template": template,
        "special": dict(special),
        "tools": tools,
        "chats": [[[_present(message) for message in chat.messages], chat.opened, list(chat.tools)] for chat in chats],
        "marked": marked,
        "cpu_seconds": CPU_SECONDS,
    }


def _present(message: Message) -> dict[str, Any]:
    """A message without the keys whose value is None: `apply_chat_template` drops them too."""
    return {key: value for key, value in message.items() if value is not None}


_RENDERER = _Renderer()
