"""`python -m engines.chat.worker`: renders chat templates, with limits on memory and on processor time.

A request is `{"template", "special", "tools", "chats": [[messages, opened], …], "marked", "cpu_seconds"}`; a chat may
have a third entry, its own tools. The answer:

- `{"texts": […], "spans": [[[start, end], …], …]}`: spans of the assistant's text if `marked`, in characters;
- `{"refused": text}`: the template raised an error. With `"each"` in the request, the errors are in `"errors"`, one
  entry for each chat: a text, or null for a chat that was rendered;
- `{"too_large": "memory"}`: it needed more than `MEMORY_BYTES`; `"text"`: it rendered more than `TEXT_CHARACTERS`.

With `"moment"` in the request, a local time in ISO form, a template that asks for the present time gets that one.

A template that computes for longer than `cpu_seconds` ends the process with SIGPROF.
"""

from __future__ import annotations

import contextlib
import importlib.util
import resource
import signal
import sys
import types
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from engines.chat.limits import MEMORY_BYTES, TEXT_CHARACTERS
from engines.llama.worker import serve

Renderer = Callable[..., tuple[list[str], list[list[tuple[int, int]]]]]


def transformers_renderer() -> Renderer:
    """transformers' own function, without the half of its import that builds its list of models.

    The two packages above the function's module are replaced by empty ones, so that their `__init__` does not run: a
    process that only renders starts in a fifth of the time. A version whose modules need more is imported whole.
    """
    spec = importlib.util.find_spec("transformers")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    names = ("transformers", "transformers.utils")
    for name, place in zip(names, (places, [f"{place}/utils" for place in places]), strict=True):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = place
    try:
        return _renderer()
    except (ImportError, AttributeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        return _renderer()


def _renderer() -> Renderer:
    from transformers.utils.chat_template_utils import render_jinja_template

    return cast(Renderer, render_jinja_template)  # its annotation says str


def limit_memory(more_bytes: int) -> None:
    """Limit this process's address space to its present size and `more_bytes`; no limit where the size is unknown."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


@contextlib.contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """End this process with SIGPROF if the block computes for longer, in Python or in C."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class _FixedTime:
    """Stands for the class `datetime` where only its `now` is used."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self) -> datetime:
        return self._moment


def set_clock(render: Renderer, moment: str) -> None:
    """Let `strftime_now` of transformers' templates see a local time in ISO form; with an empty text, the present one.

    Its environment of jinja is made inside a function, so the clock is replaced where its module looks it up.
    """
    clock = _FixedTime(datetime.fromisoformat(moment)) if moment else datetime
    sys.modules[render.__module__].datetime = clock  # type: ignore[attr-defined]


class Worker:
    """Answers requests; transformers keeps compiled templates."""

    def __init__(self, render: Renderer) -> None:
        self._render = render

    def __call__(self, request: dict[str, Any], _payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Render every conversation of a request."""
        set_clock(self._render, request.get("moment", ""))
        texts: list[str] = []
        spans: list[list[tuple[int, int]]] = []
        errors: list[str | None] = []
        for chat in request["chats"]:
            text, refused = "", None
            found: list[tuple[int, int]] = []
            try:
                with processor_time(request["cpu_seconds"]):
                    text, found = self._one(request, *chat)
            except MemoryError:
                return {"too_large": "memory"}, b""
            except Exception as error:  # noqa: BLE001 - a template is its author's program and may raise anything
                refused = f"{type(error).__name__}: {error}"[:2000]
                if not request.get("each"):
                    return {"refused": refused}, b""
            if len(text) > TEXT_CHARACTERS:
                return {"too_large": "text"}, b""
            texts.append(text)
            spans.append(found)
            errors.append(refused)
        return {"texts": texts, "spans": spans, "errors": errors}, b""

    def _one(
        self, request: dict[str, Any], messages: Any, opened: bool, tools: Any = None
    ) -> tuple[str, list[tuple[int, int]]]:
        texts, spans = self._render(
            [messages],
            tools=tools or request["tools"],
            chat_template=request["template"],
            return_assistant_tokens_mask=request["marked"],
            add_generation_prompt=opened,
            **request["special"],
        )
        return texts[0], spans[0] if request["marked"] else []


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    worker = Worker(transformers_renderer())
    limit_memory(MEMORY_BYTES)
    serve(worker)
