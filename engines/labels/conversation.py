"""Conversations through a chat template: what each structure becomes, and each row compared with its content."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from engines.chat.rendering import Chat, Rendered, Waiting, render_each
from engines.labels.skeleton import Answer, Placed, Rendering, Skeleton, skeleton_of
from engines.labels.slots import FORMS, Form, Marked, Slot, in_form, marked
from engines.labels.vocabulary import TokenizerView
from recipes.problems import printable

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THINK, _THOUGHT = "<think>", "</think>"
_KEPT_STRUCTURES = 4096
_REQUEST_TURNS = 20_000
"""Turns of placeholders in one request: a few megabytes."""
_FOLD = "\n\n"
_OTHER_TEMPLATE = 'set chat_template to another template, such as "chatml"'
SKIP = 'on_bad_row = "skip" leaves such rows out'


class UnfitError(Exception):
    """A row that a template does not render as it is.

    Attributes:
        reason: what is wrong.
        way_out: what the operator can do.
        depth: how far the row came; of several forms of a row, the one that came furthest has the reason that helps.
    """

    def __init__(self, reason: str, way_out: str, depth: int = 3) -> None:
        super().__init__(reason)
        self.reason = reason
        self.way_out = way_out
        self.depth = depth


@dataclass(frozen=True)
class Talk:
    """A conversation to label.

    Attributes:
        turns: its turns as a template takes them.
        tools: descriptions of the tools that it may call.
        weights: one for each turn; the loss never counts an answer of weight 0.
    """

    turns: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    weights: tuple[float, ...] = ()

    def weight(self, turn: int) -> float:
        """The weight of a turn."""
        return self.weights[turn] if turn < len(self.weights) else 1.0


@dataclass(frozen=True)
class Proven:
    """A conversation as text, with its answers, all in characters of the text.

    Attributes:
        text: what the template renders.
        contents: the places of the conversation's own texts.
        answers: the answers that can be scored, in order.
        notes: what the template does that the operator should know.
    """

    text: str
    contents: list[tuple[int, int]]
    answers: list[Answer]
    notes: tuple[str, ...]


def folded(talk: Talk) -> Talk:
    """The conversation with the text of its system turn before its first user turn."""
    if not talk.turns or talk.turns[0]["role"] != "system":
        return talk
    first = next((at for at, turn in enumerate(talk.turns) if turn["role"] == "user"), None)
    if first is None:
        return talk
    system, user = talk.turns[0], talk.turns[first]
    joined = {**user, "content": f"{system.get('content', '')}{_FOLD}{user.get('content', '')}"}
    turns = [joined if at == first else turn for at, turn in enumerate(talk.turns) if at]
    return Talk(turns, talk.tools, talk.weights[1:])


def separated(talk: Talk) -> Talk:
    """The conversation with reasoning between think marks, at the beginning of an answer, as `reasoning_content`."""
    turns = [_separated(turn) for turn in talk.turns]
    return talk if turns == talk.turns else replace(talk, turns=turns)


def _separated(turn: dict[str, Any]) -> dict[str, Any]:
    content = turn.get("content")
    if turn["role"] != "assistant" or turn.get("reasoning_content") or not isinstance(content, str):
        return turn
    reasoning, closed, answer = content.lstrip().removeprefix(_THINK).partition(_THOUGHT)
    if not closed or _THINK in reasoning or not reasoning.strip() or not (answer.strip() or "tool_calls" in turn):
        return turn
    return {**turn, "reasoning_content": reasoning.strip(), "content": answer.lstrip()}


_THINKING = Talk(
    [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "<think>\nTwo\n</think>\n\nThree"}]
)


@dataclass
class _Asked:
    """One row in one form: the row and its structure."""

    talk: Talk
    turns: list[dict[str, Any]]
    marked: Marked
    key: str


class Conversations:
    """The conversations of one model through one template.

    A template that asks for the present date gets that of `moment`, a local time in ISO form, in every row; without one
    that of now.
    """

    def __init__(self, view: TokenizerView, template: str, waiting: Waiting | None = None, moment: str = "") -> None:
        self._view = view
        self._template = template
        self._waiting = waiting
        self._marks = bool(_GENERATION.search(template))
        self._separates: bool | None = None
        self._known: dict[str, Skeleton | UnfitError] = {}
        self._way: tuple[Form, bool] = (FORMS[0], False)
        self._moment = moment or datetime.now().isoformat()  # noqa: DTZ005 - a template writes the local date
        day = self._moment[:10]
        whose = (
            f"{day}, when the stage first started" if moment else f"{day}, and a run that of its stage's first start"
        )
        self._dated = (f"the template writes a date into each row: {whose}",) if "strftime_now" in template else ()

    def proven(self, talks: Sequence[Talk]) -> list[Proven | UnfitError]:
        """Each conversation as text with its answers, or the reason why its labels would be wrong.

        Raises:
            TemplateLimitError: the template computed for too long, or needed too much memory.
        """
        talks = [self._suited(talk) for talk in talks]
        found = self._tried(talks, self._way)
        for number, one in enumerate(found):
            if isinstance(one, UnfitError):
                found[number] = self._otherwise(talks[number], one)
        return found

    def prompt(self, talk: Talk) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation up to where the next answer begins, and the places of its own texts in it.

        Raises:
            UnfitError: the template does not render it as it is.
            TemplateLimitError: the template computed for too long, or needed too much memory.
        """
        talk = self._suited(talk)
        error: UnfitError | None = None
        for form, fine in [self._way, *self._others(talk, self._way)]:
            asked = self._asked(talk, form, fine)
            whole, skeleton = self._render(
                [Chat(asked.turns, True, tools=talk.tools), Chat(asked.marked.turns, True, tools=asked.marked.tools)]
            )
            try:
                if skeleton.refused is not None:
                    raise _refused(skeleton.refused, talk)
                if _is_written_as_list(skeleton.text, asked.marked):
                    raise _writes_list()
                shape = _opened_skeleton(skeleton, asked.marked)
                placed = self._placed(asked, shape, whole)
                _refuse_missing(asked, shape)
            except UnfitError as found:
                error = found if error is None or found.depth > error.depth else error
                continue
            return placed.text, placed.contents
        assert error is not None
        raise error

    def _suited(self, talk: Talk) -> Talk:
        """The conversation with its reasoning where the template has a place of its own for it."""
        apart = separated(talk)
        if apart is talk:
            return talk
        if self._separates is None:
            self._separates = self._has_a_place_for_reasoning()
        return apart if self._separates else talk

    def _has_a_place_for_reasoning(self) -> bool:
        """Whether the template takes reasoning apart from the content, and does not know think marks in the content:
        it writes an empty block before them, or marks reasoning in another way."""
        way = self._way
        texts = []
        for talk in (separated(_THINKING), _THINKING):
            found = self._tried([talk], way)[0]
            found = self._otherwise(talk, found) if isinstance(found, UnfitError) else found
            texts.append(found.text.count("</think>") if isinstance(found, Proven) else None)
        self._way = way
        apart, inside = texts
        return apart is not None and (inside is None or apart < inside)

    def _otherwise(self, talk: Talk, first: UnfitError) -> Proven | UnfitError:
        """The row in the other forms that templates take; if none fits, the reason of the one that came furthest."""
        for way in self._others(talk, self._way):
            found = self._tried([talk], way)[0]
            if isinstance(found, Proven):
                self._way = way
                return found
            first = found if found.depth > first.depth else first
        return first

    @staticmethod
    def _others(talk: Talk, way: tuple[Form, bool]) -> list[tuple[Form, bool]]:
        calls = any("tool_calls" in turn for turn in talk.turns)
        forms = [form for form in FORMS if calls or not form.json_arguments]
        return [(form, fine) for fine in (False, True) for form in forms if (form, fine) != way]

    def _asked(self, talk: Talk, form: Form, fine: bool) -> _Asked:
        found = marked(talk.turns, talk.tools, fine=fine, dangerous=self._view.spelled)
        found = Marked(in_form(found.turns, form), found.tools, found.slots, found.pattern)
        return _Asked(talk, in_form(talk.turns, form), found, found.key)

    def _tried(self, talks: Sequence[Talk], way: tuple[Form, bool]) -> list[Proven | UnfitError]:
        asked = [self._asked(talk, *way) for talk in talks]
        self._learn(asked)
        texts = self._render([Chat(one.turns, tools=one.talk.tools) for one in asked])
        found: list[Proven | UnfitError] = []
        for one, text in zip(asked, texts, strict=True):
            try:
                found.append(self._one(one, text))
            except UnfitError as error:
                found.append(error)
        return found

    def _one(self, asked: _Asked, text: Rendered) -> Proven:
        skeleton = self._known[asked.key]
        if isinstance(skeleton, UnfitError):
            raise skeleton
        placed = self._placed(asked, skeleton, text)
        notes = _refuse_missing(asked, skeleton)
        _refuse_twice(skeleton, asked.marked)
        _refuse_moved(skeleton, asked)
        _refuse_dropped_tools(asked, skeleton)
        answers = [_in_row(answer, placed) for answer in skeleton.answers]
        about = dict.fromkeys([*notes, *self._dated, *(note for answer in answers for note in answer.notes)])
        return Proven(placed.text, placed.contents, answers, tuple(about))

    def _placed(self, asked: _Asked, skeleton: Skeleton, text: Rendered) -> Placed:
        if text.refused is not None:
            raise _refused(text.refused, asked.talk)
        placed = Placed(skeleton, text.text)
        different = placed.fill(asked.marked)
        if different is not None:
            shown = printable(text.text[max(0, different - 20) : different + 40], 60)
            raise UnfitError(
                f"the chat template changes a text of this conversation, near '{shown}'",
                f"{_OTHER_TEMPLATE}; {SKIP}",
                depth=1,
            )
        return placed

    def _learn(self, asked: Sequence[_Asked]) -> None:
        """Render the structures that are not known yet, in as few requests as their size allows."""
        if len(self._known) > _KEPT_STRUCTURES:
            self._known.clear()
        new = list({one.key: one for one in asked if one.key not in self._known}.values())
        chats = [_probes(one.marked) for one in new]
        texts = iter(
            [
                text
                for group in _bounded([chat for group in chats for chat in group])
                for text in self._render(group, marked_too=True)
            ]
        )
        for one, group in zip(new, chats, strict=True):
            self._known[one.key] = self._skeleton(one, [next(texts) for _ in group])

    def _skeleton(self, asked: _Asked, texts: list[Rendered]) -> Skeleton | UnfitError:
        whole = texts[0]
        if whole.refused is not None:
            return _refused(whole.refused, asked.talk)
        if _is_written_as_list(whole.text, asked.marked):
            return _writes_list()
        parts = [None if one.refused is not None else one.text for one in texts[1:]]
        turns = _answers(asked.marked.turns)
        rendering = Rendering(
            whole.text,
            dict(zip(turns, parts[::2], strict=True)),
            dict(zip(turns, parts[1::2], strict=True)),
            whole.spans if self._marks else None,
        )
        return skeleton_of(rendering, asked.marked, self._view.spelled)

    def _render(self, chats: Sequence[Chat], *, marked_too: bool = False) -> list[Rendered]:
        return render_each(
            self._template,
            self._view.special,
            chats,
            marked=marked_too and self._marks,
            moment=self._moment,
            waiting=self._waiting,
        )


def _answers(turns: Sequence[Mapping[str, Any]]) -> list[int]:
    return [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]


def _probes(marked: Marked) -> list[Chat]:
    """The whole structure, and for each answer the prompt of its generation and the conversation up to it.

    The last answer is rendered with a user's turn behind it: what is equal in both is its own end.
    """
    turns, tools = marked.turns, marked.tools
    chats = [Chat(turns, tools=tools)]
    for turn in _answers(turns):
        upto = turns[: turn + 1]
        if turn == len(turns) - 1:
            following = "and?" if isinstance(turns[0].get("content"), str) else [{"type": "text", "text": "and?"}]
            upto = [*upto, {"role": "user", "content": following}]
        chats += [Chat(turns[:turn], True, tools=tools), Chat(upto, tools=tools)]
    return chats


def _bounded(chats: Sequence[Chat]) -> Iterator[list[Chat]]:
    """The chats in groups of a bounded number of turns: the probes of a long conversation have its turns squared."""
    group: list[Chat] = []
    turns = 0
    for chat in chats:
        if group and turns + len(chat.messages) > _REQUEST_TURNS:
            yield group
            group, turns = [], 0
        group.append(chat)
        turns += len(chat.messages)
    if group:
        yield group


def _opened_skeleton(text: Rendered, marked: Marked) -> Skeleton:
    places = tuple((found.start(), found.end(), found.group()) for found in marked.pattern.finditer(text.text))
    return Skeleton(text.text, places, ())


def _in_row(answer: Answer, placed: Placed) -> Answer:
    return replace(
        answer,
        start=placed.place(answer.start),
        own=placed.place(answer.own),
        end=placed.place(answer.end),
        text_end=placed.place(answer.text_end),
    )


def _refused(words: str, talk: Talk) -> UnfitError:
    system = bool(talk.turns) and talk.turns[0]["role"] == "system"
    first = "set fold_system = true, if it refuses the system turn; " if system else ""
    return UnfitError(
        f"the chat template does not render the conversation: {printable(words, 300)}",
        f"{first}{_OTHER_TEMPLATE}; {SKIP}",
        depth=0,
    )


_LIST_BEFORE = re.compile(r"""['"]text['"]: ?['"]\s*$""")
_LONGEST_LIST = 64


def _writes_list() -> UnfitError:
    return UnfitError("the chat template writes a list of parts as it is in the program", _OTHER_TEMPLATE, depth=0)


def _is_written_as_list(text: str, marked: Marked) -> bool:
    """Whether a template that takes text wrote the list of parts that it got instead, with brackets and quotes."""
    if not any(isinstance(turn.get("content"), list) for turn in marked.turns):
        return False
    found = (place for place in marked.pattern.finditer(text) if marked.slots[place.group()].kind == "content")
    return any(_LIST_BEFORE.search(text[max(0, place.start() - _LONGEST_LIST) : place.start()]) for place in found)


def _refuse_missing(asked: _Asked, skeleton: Skeleton) -> tuple[str, ...]:
    """Refuse a row whose text the template drops. Reasoning before the last question is dropped by design: a note."""
    missing = skeleton.missing(asked.marked)
    users = [number for number, turn in enumerate(asked.talk.turns) if turn["role"] == "user"]
    last = max(users, default=-1)
    lost = [slot for slot in missing if not (slot.kind == "reasoning" and slot.turn < last)]
    if not lost:
        return ("the template leaves out the reasoning of earlier turns",) if missing else ()
    slot = lost[0]
    role = asked.talk.turns[slot.turn]["role"]
    what = {"reasoning": "the reasoning", "call": "the tool call", "name": "the tool call"}.get(slot.kind, "the text")
    raise UnfitError(
        f"the chat template drops {what} of turn {slot.turn + 1} ({role}): '{printable(slot.text, 40)}'",
        _way_out(slot.kind, role),
        depth=1 if slot.kind == "content" else 2,
    )


def _way_out(kind: str, role: str) -> str:
    if kind == "reasoning":
        return f'set ignore_keys = ["reasoning_content"] to train without it, or {_OTHER_TEMPLATE}'
    if kind in ("call", "name"):
        return f'{_OTHER_TEMPLATE}, or ignore_keys = ["tool_calls"] to train without it; {SKIP}'
    return f"set fold_system = true, or {_OTHER_TEMPLATE}" if role == "system" else f"{_OTHER_TEMPLATE}; {SKIP}"


def _refuse_twice(skeleton: Skeleton, marked: Marked) -> None:
    counts = Counter(name for _, _, name in skeleton.places)
    for answer in skeleton.answers:
        twice = [
            slot
            for name, slot in marked.slots.items()
            if slot.turn == answer.turn and slot.kind not in ("name", "schema") and counts[name] > 1
        ]
        if twice:
            raise UnfitError(
                f"the chat template writes the text of turn {answer.turn + 1} twice, so its place is not certain",
                f"{_OTHER_TEMPLATE}; {SKIP}",
            )


def _refuse_moved(skeleton: Skeleton, asked: _Asked) -> None:
    """Refuse turns in another order than the row's, and an answer that would be scored with a text of another turn.

    A system turn may stand anywhere: some families write it before the last question.
    """
    slots, turns = asked.marked.slots, asked.talk.turns
    first: dict[int, int] = {}
    for start, _, name in skeleton.places:
        if slots[name].kind in ("content", "inner") and turns[slots[name].turn]["role"] != "system":
            first.setdefault(slots[name].turn, start)
    order = list(first)
    moved = next((one for one, other in zip(order, sorted(order), strict=True) if one != other), None)
    if moved is None:
        moved = next((answer.turn for answer in skeleton.answers if _foreign(skeleton, slots, answer)), None)
    if moved is not None:
        raise UnfitError(
            f"the chat template writes turn {moved + 1} ({turns[moved]['role']}) in another place than the row has it",
            f"{_OTHER_TEMPLATE}; {SKIP}",
        )


def _foreign(skeleton: Skeleton, slots: Mapping[str, Slot], answer: Answer) -> bool:
    """Whether a text of another turn stands between the beginning and the end of an answer."""
    return any(
        answer.own < end and start < answer.end and slots[name].turn != answer.turn
        for start, end, name in skeleton.places
        if slots[name].kind in ("content", "inner", "reasoning")
    )


def _refuse_dropped_tools(asked: _Asked, skeleton: Skeleton) -> None:
    for tool in asked.marked.tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name not in skeleton.text:
            raise UnfitError(
                f"the chat template drops the description of the tool '{printable(name, 60)}'",
                f'{_OTHER_TEMPLATE}, or ignore_keys = ["tools"] to train without it',
            )
