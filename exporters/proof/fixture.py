"""One JSON file that says what a model answers, so that any other runtime can be held against it.

Prompts with the ids that transformers greedily goes on with in float32, the largest logits and the log of the summed
exponentials at every position, and texts with their ids for the runtime's tokenizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.json_text import read_json
from exporters.proof.inference import LIMIT
from exporters.proof.parity_data import HARD_STRINGS, encode
from recipes.problems import OperatorError, printable

FORMAT = 1
KIND = "cockpit-parity-fixture"
TOP = 10
"""Logits that are kept at every position."""
SEED = 0
"""Greedy decoding draws no random numbers; a runtime that wants a seed all the same is given this one."""
MAX_BYTES = 64 * 1024 * 1024
_MAX_IDS = 1_000_000


@dataclass(frozen=True)
class Position:
    """What the model says after one token.

    Attributes:
        top: the largest logits with their ids, largest first.
        logsumexp: natural log of the sum of exp(logit) over the whole vocabulary; logit - logsumexp is a
            log-probability.
    """

    top: list[tuple[int, float]]
    logsumexp: float

    @property
    def gap(self) -> float:
        """Between the two largest logits."""
        return self.top[0][1] - self.top[1][1] if len(self.top) > 1 else math.inf


@dataclass(frozen=True)
class Prompt:
    """A prompt and its greedy answer.

    Attributes:
        text: the prompt as text; None where its ids are not those of its text.
        special: names of control tokens in the text are control tokens.
        ids: the prompt.
        greedy_ids: what follows, up to the limit or with the token that ended it.
        positions: what the model says after each token of the prompt and of the answer but its last.
    """

    text: str | None
    special: bool
    ids: list[int]
    greedy_ids: list[int]
    positions: list[Position]

    def after(self, index: int) -> Position:
        """What the model says where token `index` of the answer is chosen."""
        return self.positions[len(self.ids) - 1 + index]


@dataclass(frozen=True)
class Fixture:
    """Everything a runtime is held against.

    Attributes:
        model: what is known of the model: name, hashes, vocab_size.
        protocol: how the answers were made: limit, stops, seed, versions.
        prompts: prompts and answers.
        strings: texts with their ids, for tokenizers: {"text", "special", "ids"}.
        files: the GGUF files made of the model: {"file", "file_type", "bytes", "sha256"}.
    """

    model: dict[str, Any]
    protocol: dict[str, Any]
    prompts: list[Prompt]
    strings: list[dict[str, Any]]
    files: list[dict[str, Any]]

    def as_json(self) -> str:
        """The file's content; numbers of logits are rounded to 7 digits, which float32 has."""
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


def answer(model: Any, tokenizer: Any, ids: Sequence[int], limit: int, stops: Sequence[int]) -> Prompt:
    """A prompt with the greedy answer of a transformers model.

    Args:
        model: in float32, in evaluation mode.
        tokenizer: the model's.
        ids: the prompt.
        limit: most tokens of the answer.
        stops: tokens that end it.
    """
    import torch

    rows: list[NDArray[np.float32]] = []
    new: list[int] = []
    cache = None
    unread = [list(ids)]
    with torch.inference_mode():
        while len(new) < limit and not (new and new[-1] in stops):
            output = model(torch.tensor(unread), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            rows.append(output.logits[0].float().numpy())
            new.append(int(rows[-1][-1].argmax()))
            unread = [[new[-1]]]
    text, special = _text_of(tokenizer, list(ids))
    return Prompt(text, special, list(ids), new, positions_of(np.concatenate(rows)))


def _text_of(tokenizer: Any, ids: list[int]) -> tuple[str | None, bool]:
    """The text that has these ids, and whether its control tokens are read as such."""
    text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    for special in (False, True):
        if encode(tokenizer, text, special=special) == ids:
            return text, special
    return None, False


def fixture_prompts(
    prompts: Sequence[Sequence[int]], windows: Sequence[Sequence[int]], context: int
) -> list[list[int]]:
    """What a fixture asks: the given prompts, whose answers may end after a few tokens, and as many windows cut
    short."""
    asked = [list(prompt) for prompt in prompts]
    for part, window in product((2, 4), windows):
        cut = list(window[: max(1, len(window) // part)])
        if len(asked) >= 2 * len(prompts):
            break
        if len(cut) + LIMIT <= context and cut not in asked:
            asked.append(cut)
    return asked


def protocol_of(stops: list[int], reference: Mapping[str, str]) -> dict[str, Any]:
    """How the answers of a fixture were made.

    Args:
        stops: tokens that end an answer.
        reference: versions and type of what answered.
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
    """Read a fixture, which may come from anywhere.

    Raises:
        OperatorError: it is none, or is damaged; says where.
    """
    try:
        body = read_json(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise OperatorError(f"{path} is no fixture: {printable(str(error), 200)}", "an export writes one") from error
    if not isinstance(body, dict) or body.get("kind") != KIND:
        raise OperatorError(f'{path} is no fixture: it has no "kind": "{KIND}"', "an export writes one")
    if body.get("format") != FORMAT:
        raise OperatorError(f"{path}: format — got {printable(str(body.get('format')), 20)}; allowed {FORMAT}")
    try:
        prompts = [_read_prompt(item) for item in body["prompts"]]
        files = [{**_a(dict, item), "file": _file_name(item["file"])} for item in body["files"]]
        strings = [{**_a(dict, s), "text": _a(str, s["text"]), "ids": _read_ids(s["ids"])} for s in body["strings"]]
        fixture = Fixture(_a(dict, body["model"]), _a(dict, body["protocol"]), prompts, strings, files)
        _read_ids(fixture.protocol["stops"])
        _a(int, fixture.protocol["limit"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise OperatorError(f"{path} is a damaged fixture: {printable(repr(error), 200)}", "export again") from error
    if not prompts:
        raise OperatorError(f"{path} has no prompts: the export's windows were too short for one")
    return fixture


def _read_prompt(item: Mapping[str, Any]) -> Prompt:
    positions = [
        Position([(int(token), float(logit)) for token, logit in position["top"]], float(position["logsumexp"]))
        for position in item["positions"]
    ]
    text = item["text"] if item["text"] is None else _a(str, item["text"])
    prompt = Prompt(text, bool(item["special"]), _read_ids(item["ids"]), _read_ids(item["greedy_ids"]), positions)
    if not prompt.ids or not prompt.greedy_ids or len(positions) != len(prompt.ids) + len(prompt.greedy_ids) - 1:
        raise ValueError("a prompt's positions are not those of its ids")
    if not all(position.top for position in positions):
        raise ValueError("a position without logits")
    return prompt


def _read_ids(value: Any) -> list[int]:
    ids = _a(list, value)
    if len(ids) > _MAX_IDS or not all(type(item) is int and 0 <= item < 2**31 for item in ids):
        raise ValueError("ids are not token ids")
    return list(ids)


def _file_name(value: Any) -> str:
    name = _a(str, value)
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not a file's name")
    return str(name)


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _short(value: float) -> float:
    return float(f"{value:.7g}")
