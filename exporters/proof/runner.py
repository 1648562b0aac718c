"""Runtimes: any program that takes a GGUF file and a prompt's ids, and the built-in llama.cpp."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engines.json_text import parse_json
from engines.llama.process import LlamaProcess
from exporters.proof.fixture import Fixture, Position, Prompt, positions_of
from recipes import quantities
from recipes.problems import OperatorError, printable

PLACEHOLDERS = ("gguf", "prompt_ids", "prompt", "limit", "seed", "stop_ids")
MAX_OUTPUT_BYTES = 256 * 1024 * 1024
_IDS = re.compile(r"\[?\s*\d+(?:[\s,]+\d+)*[\s,]*\]?")


@dataclass(frozen=True)
class Answer:
    """A runtime's answer to one prompt: the new ids, and log-probabilities at the answer's positions if it reports
    them."""

    ids: list[int]
    log_probabilities: list[dict[int, float]] | None
    seconds: float


class RunnerError(Exception):
    """A program failed on a file, took too long, or its output cannot be read. The message is for operators."""


class Runtime(Protocol):
    """Answers prompts with one file."""

    name: str

    def answer(self, gguf: Path, prompt: Prompt, fixture: Fixture) -> Answer: ...


class ForeignRuntime:
    """A program of the operator, started once for every prompt, without a shell.

    It gets the prompt's ids and prints the new ids: a JSON object `{"ids": […]}`, or only numbers, on its last line.
    With `"logits": [[…], …]` (one row per new id, the whole vocabulary) or
    `"top_logprobs": [[[id, log-probability], …], …]` the distributions are compared too.
    """

    def __init__(self, command: str, timeout_s: float) -> None:
        """Split the command as a shell would.

        Raises:
            OperatorError: the command cannot be split, lacks {gguf} or {prompt_ids}, or its program is not found.
        """
        try:
            self._parts = shlex.split(command)
        except ValueError as error:
            raise OperatorError(f"--runner — {printable(command, 300)} cannot be split: {error}") from error
        used = set(re.findall(r"\{(\w*)\}", " ".join(self._parts)))
        wrong = sorted(used - set(PLACEHOLDERS))
        missing = [name for name in ("gguf", "prompt_ids") if name not in used]
        if "prompt" in used:
            missing = [name for name in missing if name != "prompt_ids"]
        allowed = "allowed " + ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        if wrong:
            raise OperatorError(f"--runner — got {{{printable(wrong[0], 40)}}}; {allowed}")
        if missing:
            raise OperatorError(
                f"--runner — has no {{{missing[0]}}}; {allowed}", "for example: 'myrun {gguf} {prompt_ids}'"
            )
        if shutil.which(self._parts[0]) is None:
            raise OperatorError(f"--runner — program not found: {printable(self._parts[0], 300)}")
        self.name = command
        self._timeout_s = timeout_s

    def answer(self, gguf: Path, prompt: Prompt, fixture: Fixture) -> Answer:
        """Run the program once.

        Raises:
            RunnerError: the program failed, took too long, or its output cannot be read.
        """
        if "{prompt}" in self.name and prompt.text is None:
            raise RunnerError("no text has exactly this prompt's ids; use {prompt_ids}")
        values = {
            "gguf": str(gguf),
            "prompt_ids": ",".join(map(str, prompt.ids)),
            "prompt": prompt.text or "",
            "limit": str(fixture.protocol["limit"]),
            "seed": str(fixture.protocol.get("seed", 0)),
            "stop_ids": ",".join(map(str, fixture.protocol["stops"])),
        }
        command = [_filled(part, values) for part in self._parts]
        began_s = time.monotonic()
        output = _run(command, self._timeout_s)
        return _parse(output, prompt, time.monotonic() - began_s)


class LlamaRuntime:
    """llama.cpp, in one process per file."""

    name = "llama.cpp (built in)"

    def __init__(self, threads: int) -> None:
        """With `threads` CPU threads."""
        self._threads = threads
        self._open: tuple[Path, LlamaProcess] | None = None

    def process(self, gguf: Path, fixture: Fixture) -> LlamaProcess:
        """The process that has loaded the file; consecutive prompts share it."""
        if self._open is None or self._open[0] != gguf:
            self.close()
            length = max(len(p.ids) for p in fixture.prompts) + int(fixture.protocol["limit"])
            llama = LlamaProcess(gguf, length, self._threads)
            self._open = (gguf, llama)
            wanted = fixture.model.get("vocab_size", llama.vocab_size)
            if llama.vocab_size != wanted:
                raise OperatorError(
                    f"{gguf} has {llama.vocab_size} tokens, but the fixture's model has {printable(str(wanted), 20)}",
                    "use a file of the fixture's model",
                )
        return self._open[1]

    def answer(self, gguf: Path, prompt: Prompt, fixture: Fixture) -> Answer:
        """Greedy ids and distributions of llama.cpp.

        Raises:
            NativeError: llama.cpp cannot load the file.
        """
        began_s = time.monotonic()
        answered = self.answered_prompt(gguf, prompt, fixture)
        seconds = time.monotonic() - began_s
        rows = [dict(_log_probabilities(answered.after(index))) for index in range(len(answered.greedy_ids))]
        return Answer(answered.greedy_ids, rows, seconds)

    def answered_prompt(self, gguf: Path, prompt: Prompt, fixture: Fixture) -> Prompt:
        """The prompt with llama.cpp's own answer instead of the model's."""
        llama = self.process(gguf, fixture)
        ids = llama.generate(prompt.ids, int(fixture.protocol["limit"]), fixture.protocol["stops"]).ids
        positions = positions_of(llama.logits([*prompt.ids, *ids[:-1]]))
        return Prompt(prompt.text, prompt.special, prompt.ids, ids, positions)

    def close(self) -> None:
        """Stop the process."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


def _log_probabilities(position: Position) -> Sequence[tuple[int, float]]:
    return [(token, logit - position.logsumexp) for token, logit in position.top]


def _filled(part: str, values: Mapping[str, str]) -> str:
    """Replace placeholders in one pass, so that braces in a value are never a placeholder."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found.group(1), found.group(0)), part)


def _run(command: Sequence[str], timeout_s: float) -> str:
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise RunnerError(f"the program could not be started: {error.strerror}") from error
    with child:
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RunnerError(
                f"the program took more than {quantities.duration(timeout_s)} and was stopped; --timeout allows more"
            ) from error
        finally:
            with suppress(OSError):  # with all processes that it started
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        output = printable(err.decode("utf-8", "replace").strip()[-400:], 400)
        raise RunnerError(f"the program ended with {how}" + (f": {output}" if output else ""))
    if len(out) > MAX_OUTPUT_BYTES:
        raise RunnerError(f"the program printed more than {quantities.size(MAX_OUTPUT_BYTES)}")
    return out.decode("utf-8", "replace")


def _parse(output: str, prompt: Prompt, seconds: float) -> Answer:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if not lines:
        raise RunnerError("the program printed nothing; expected the new ids")
    body: Any = None
    for text in (output, lines[-1]):
        with suppress(ValueError):
            body = parse_json(text)
            break
    if isinstance(body, dict):
        ids, rows = body.get("ids"), _rows(body)
    elif _IDS.fullmatch(lines[-1]):
        ids, rows = [int(word) for word in re.findall(r"\d+", lines[-1])], None
    else:
        ids, rows = None, None
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise RunnerError(
            f"the program's last line is {printable(lines[-1], 120)!r}; expected numbers, or a JSON object with "
            '"ids": the new tokens'
        )
    if len(ids) > len(prompt.ids) and ids[: len(prompt.ids)] == prompt.ids:
        ids = ids[len(prompt.ids) :]  # some programs repeat the prompt
    return Answer(ids, rows, seconds)


def _rows(body: Mapping[str, Any]) -> list[dict[int, float]] | None:
    """Log-probabilities by id at each position of the answer."""
    try:
        if body.get("top_logprobs") is not None:
            return [{int(token): float(value) for token, value in row} for row in body["top_logprobs"]]
        if body.get("logits") is not None:
            rows = []
            for row in body["logits"]:
                values = [float(value) for value in row]
                largest = max(values)
                total = largest + math.log(math.fsum(math.exp(value - largest) for value in values))
                rows.append({token: value - total for token, value in enumerate(values)})
            return rows
    except (TypeError, ValueError, OverflowError) as error:
        raise RunnerError(f"the program's logits cannot be read: {printable(str(error), 200)}") from error
    return None
