"""The fixture: one JSON file with a model's answers, to compare other runtimes with.

It has prompts with the ids of transformers' greedy answers in float32, the largest logits and the log of the summed
exponentials at every position, and texts with their ids for the runtime's tokenizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.data.hard_strings import HARD_STRINGS
from engines.json_text import read_json
from exporters.proof.inference import LIMIT
from exporters.proof.parity import FillsLogits
from exporters.proof.parity_data import encode
from recipes.problems import OperatorError, printable

FORMAT = 1
KIND = "cockpit-parity-fixture"
TOP = 10
"""Number of logits that are kept at every position."""
SEED = 0
"""Greedy decoding draws no random numbers; this seed is for runtimes that require one."""
MAX_BYTES = 64 * 1024 * 1024
_MAX_IDS = 1_000_000

Scratch = Callable[[int], "NDArray[np.float32]"]
"""Makes room for the logits of a number of positions: float32 [positions, vocab_size], in memory or in a file."""


@dataclass(frozen=True)
class Position:
    """The model's output after one token.

    Attributes:
        top: the largest logits with their ids, largest first.
        logsumexp: natural log of the sum of exp(logit) over the whole vocabulary; logit - logsumexp is a
            log-probability.
    """

    top: list[tuple[int, float]]
    logsumexp: float

    @property
    def gap(self) -> float:
        """The difference of the two largest logits; infinite if only one is kept."""
        return self.top[0][1] - self.top[1][1] if len(self.top) > 1 else math.inf


@dataclass(frozen=True)
class Prompt:
    """A prompt and its greedy answer.

    Attributes:
        text: the prompt as text; None if no text has exactly its ids.
        special: whether names of control tokens in the text mean control tokens.
        ids: the prompt.
        greedy_ids: the answer, up to the limit or with the token that ended it.
        positions: the model's output after each token of prompt and answer, except the last.
    """

    text: str | None
    special: bool
    ids: list[int]
    greedy_ids: list[int]
    positions: list[Position]

    def after(self, index: int) -> Position:
        """The model's output that chooses token `index` of the answer."""
        return self.positions[len(self.ids) - 1 + index]


@dataclass(frozen=True)
class Fixture:
    """Everything that a runtime is compared with.

    Attributes:
        model: facts about the model: name, hashes, vocab_size.
        protocol: how the answers were computed: limit, stops, seed, versions.
        prompts: prompts and answers.
        strings: texts with their ids, for tokenizers: {"text", "special", "ids"}.
        files: the GGUF files of the model: {"file", "file_type", "bytes", "sha256"}.
    """

    model: dict[str, Any]
    protocol: dict[str, Any]
    prompts: list[Prompt]
    strings: list[dict[str, Any]]
    files: list[dict[str, Any]]

    def as_json(self) -> str:
        """The file's content; logits are rounded to 7 digits, the precision of float32."""
        body = {"format": FORMAT, "kind": KIND, **asdict(self)}
        for prompt in body["prompts"]:
            for position in prompt["positions"]:
                position["top"] = [[token, _short(logit)] for token, logit in position["top"]]
                position["logsumexp"] = _short(position["logsumexp"])
        return json.dumps(body, ensure_ascii=True, allow_nan=False)


def positions_of(logits: NDArray[np.float32]) -> list[Position]:
    """The largest logits of each row of float32 [positions, vocab_size], and the log of the summed exponentials."""
    found = []
    for row in logits:
        values = row.astype(np.float64)
        best = np.argpartition(values, -min(TOP, len(values)))[-TOP:]
        order = best[np.argsort(-values[best], kind="stable")]
        largest = float(values.max())
        total = largest + math.log(float(np.exp(values - largest).sum()))
        found.append(Position([(int(token), float(values[token])) for token in order], total))
    return found


Draft = Callable[[list[int], int], list[int]]
"""Guesses a continuation: takes ids and a largest number of new tokens."""


def no_draft(_ids: list[int], _limit: int) -> list[int]:
    """No guess."""
    return []


def answers(
    model: FillsLogits,
    tokenizer: Any,
    asked: Sequence[Sequence[int]],
    stops: Sequence[int],
    scratch: Scratch,
    draft: Draft = no_draft,
) -> list[Prompt]:
    """Prompts with the model's greedy answers of up to `LIMIT` tokens.

    A guess is checked at all its positions at once and corrected at the first wrong one, so that the answers are the
    model's own, whatever the guesses are; good guesses save passes over the model's weights.

    Args:
        model: in float32.
        tokenizer: the model's.
        asked: the prompts.
        stops: tokens that end an answer.
        scratch: makes room for logits.
        draft: guesses a continuation.
    """
    begun = [list(ids) for ids in asked]
    known: list[list[int]] = [[] for _ in begun]
    found: dict[int, NDArray[np.float32]] = {}
    while left := [number for number in range(len(begun)) if number not in found]:
        guesses = {n: known[n] + draft([*begun[n], *known[n]], LIMIT - len(known[n])) for n in left}
        guesses = {number: _until(ids, stops)[: LIMIT - 1] for number, ids in guesses.items()}
        windows = [[*begun[number], *guesses[number]] for number in left]
        logits = scratch(sum(map(len, windows)))
        model.logits_into(windows, logits, lambda _positions: None)
        start = 0
        for number, window in zip(left, windows, strict=True):
            rows = logits[start : start + len(window)]
            start += len(window)
            first = len(begun[number]) - 1
            chosen = [int(row.argmax()) for row in rows[first:]]
            guess = guesses[number]
            right = next((i for i, (a, b) in enumerate(zip(guess, chosen, strict=False)) if a != b), len(guess))
            known[number] = chosen[: right + 1]
            if len(known[number]) == LIMIT or known[number][-1] in stops:
                found[number] = np.array(rows[: first + len(known[number])])
    return [
        Prompt(*_text_of(tokenizer, ids), ids, known[number], positions_of(found[number]))
        for number, ids in enumerate(begun)
    ]


def _until(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The ids before the first that ends an answer."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])


def _text_of(tokenizer: Any, ids: list[int]) -> tuple[str | None, bool]:
    """The text with exactly these ids or None, and whether names of control tokens in it mean control tokens."""
    text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    for special in (False, True):
        if encode(tokenizer, text, special=special) == ids:
            return text, special
    return None, False


def fixture_prompts(
    prompts: Sequence[Sequence[int]], windows: Sequence[Sequence[int]], context: int
) -> list[list[int]]:
    """The fixture's prompts: the given ones, whose answers may end after a few tokens, and as many shortened
    windows."""
    asked = [list(prompt) for prompt in prompts]
    for part, window in product((2, 4), windows):
        cut = list(window[: max(1, len(window) // part)])
        if len(asked) >= 2 * len(prompts):
            break
        if len(cut) + LIMIT <= context and cut not in asked:
            asked.append(cut)
    return asked


def protocol_of(stops: list[int], reference: Mapping[str, str]) -> dict[str, Any]:
    """How the answers of a fixture were computed.

    Args:
        stops: tokens that end an answer.
        reference: versions and dtype of the model that answered.
    """
    return {
        "sampling": "greedy",
        "limit": LIMIT,
        "stops": stops,
        "seed": SEED,
        "top": TOP,
        "add_bos": False,
        "reference": dict(reference),
    }


def strings_of(tokenizer: Any) -> list[dict[str, Any]]:
    """Texts at which tokenizers are known to differ, with the ids of this one."""
    return [
        {"text": text, "special": special, "ids": encode(tokenizer, text, special=special)}
        for text in HARD_STRINGS
        for special in (True, False)
    ]


def load_fixture(path: Path) -> Fixture:
    """Read and validate a fixture file.

    Raises:
        OperatorError: the file is not a fixture file, or is damaged.
    """
    try:
        body = read_json(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"{path} is not a fixture file: {printable(str(error), 200)}", "an export writes fixture.json"
        ) from error
    if not isinstance(body, dict) or body.get("kind") != KIND:
        raise OperatorError(
            f'{path} is not a fixture file: it has no "kind": "{KIND}"', "an export writes fixture.json"
        )
    if body.get("format") != FORMAT:
        raise OperatorError(f"{path}: format — got {printable(str(body.get('format')), 20)}; allowed {FORMAT}")
    try:
        prompts = [_read_prompt(item) for item in body["prompts"]]
        files = [{**_typed(dict, item), "file": _file_name(item["file"])} for item in body["files"]]
        strings = [
            {**_typed(dict, s), "text": _typed(str, s["text"]), "ids": _read_ids(s["ids"])} for s in body["strings"]
        ]
        fixture = Fixture(_typed(dict, body["model"]), _typed(dict, body["protocol"]), prompts, strings, files)
        _read_ids(fixture.protocol["stops"])
        _typed(int, fixture.protocol["limit"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise OperatorError(f"{path} is damaged: {printable(repr(error), 200)}", "export the model again") from error
    if not prompts:
        raise OperatorError(f"{path} has no prompts: the export's windows were too short")
    return fixture


def _read_prompt(item: Mapping[str, Any]) -> Prompt:
    positions = [
        Position([(int(token), float(logit)) for token, logit in position["top"]], float(position["logsumexp"]))
        for position in item["positions"]
    ]
    text = item["text"] if item["text"] is None else _typed(str, item["text"])
    prompt = Prompt(text, bool(item["special"]), _read_ids(item["ids"]), _read_ids(item["greedy_ids"]), positions)
    if not prompt.ids or not prompt.greedy_ids or len(positions) != len(prompt.ids) + len(prompt.greedy_ids) - 1:
        raise ValueError("a prompt has a wrong number of positions")
    if not all(position.top for position in positions):
        raise ValueError("a position has no logits")
    return prompt


def _read_ids(value: Any) -> list[int]:
    ids = _typed(list, value)
    if len(ids) > _MAX_IDS or not all(type(item) is int and 0 <= item < 2**31 for item in ids):
        raise ValueError("a list of ids has other values than token ids")
    return list(ids)


def _file_name(value: Any) -> str:
    name = _typed(str, value)
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not a file name")
    return str(name)


def _typed(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"got {type(value).__name__}; allowed {kind.__name__}")
    return value


def _short(value: float) -> float:
    return float(f"{value:.7g}")
