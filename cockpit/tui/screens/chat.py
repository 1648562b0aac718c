"""A chat with one model, or with two side by side."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.screen import Screen
from textual.widgets import Static

from cockpit.talking.conversation import Turn, append_row
from cockpit.talking.dialogue import Dialogue, Session, Speaker
from cockpit.talking.saved_prompts import SavedPrompt, prompts_file, read_prompts, save_prompt
from cockpit.talking.session import ChatSession
from cockpit.talking.settings import setting_text
from cockpit.talking.target import ChatTarget
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.dialogs.ask import AskScreen
from cockpit.tui.dialogs.pick import PickScreen
from cockpit.tui.dialogs.sampling import SamplingScreen
from cockpit.tui.look.clipboard import copy
from cockpit.tui.look.keys import bindings
from cockpit.tui.look.notices import say, say_error
from cockpit.tui.look.theme import palette
from cockpit.tui.widgets.key_bar import KeyBar
from cockpit.tui.widgets.prompt_area import PromptArea
from cockpit.tui.widgets.talk_body import Passage, TalkBody
from engines.chatting.lines import FULL, LIMIT, SLOWER, STOPPED, Event, Job, Sampling
from recipes.problems import OperatorError, printable

DRAIN_S = 0.25
"""Seconds between two looks at what the models have sent: an answer is drawn four times a second at most, because the
screen takes time from a training too."""
_ENDINGS = {LIMIT: "reached max_new_tokens", STOPPED: "you stopped it", FULL: "the context is full"}
ASKS = "enter accepts   esc cancels"
Opener = Callable[[Job, Callable[[Event], None]], Session]


def passages_of(speaker: Speaker, now: float) -> list[Passage]:
    """The conversation with one model.

    Args:
        speaker: the model.
        now: seconds since the chat was opened.
    """
    found = [Passage("note", f"warning: {text}") for text in speaker.warnings]
    if speaker.talk.system:
        found += [Passage("name", "system"), Passage("note", speaker.talk.system)]
    for turn in speaker.talk.turns:
        found += [Passage("name", "you"), Passage("prompt", turn.prompt), Passage("name", "model")]
        if turn.answer:
            found.append(Passage("answer", turn.answer))
        found += [_ending(speaker, turn), Passage("note", "")]
    if speaker.failed:
        found.append(Passage("error", f"{speaker.failed}\n{speaker.hint}".rstrip()))
    elif speaker.ready is None:
        found.append(Passage("note", loading_words(speaker, now)))
    return found


def loading_words(speaker: Speaker, now: float) -> str:
    """What a model does before it can answer, and for how long."""
    state = speaker.loading
    sizes = f" {fmt.size(state.done)} of {fmt.size(state.total)}" if state.total else ""
    return f"{state.phase}{sizes} … {fmt.duration(int(now))}"


def _ending(speaker: Speaker, turn: Turn) -> Passage:
    """The line below an answer: its tokens and speed, or why it is not complete."""
    if turn.failed:
        return Passage("error", turn.failed)
    without = ", without the adapter" if speaker.ready and speaker.ready.adapter and not turn.adapter else ""
    if turn.done is None:
        words = f"{fmt.counted(turn.tokens, 'token')} …" if turn.tokens else "waits" if not turn.answer else "…"
        return Passage("note", words + without)
    done = turn.done
    parts = [fmt.counted(done.tokens, "token")]
    if done.tokens_per_second is not None:
        parts.append(fmt.rate(done.tokens_per_second))
    if done.tokens:
        parts.append(f"first after {fmt.duration(done.first_token_s)}")
    if done.ended in _ENDINGS:
        parts.append(_ENDINGS[done.ended])
    return Passage("note", ", ".join(parts) + without)


class TalkPane(Vertical):
    """One model: its title and its conversation."""

    DEFAULT_CSS = """
    TalkPane { width: 1fr; height: 1fr; }
    TalkPane > Static { height: 1; background: $surface; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def compose(self) -> ComposeResult:
        yield Static()
        yield TalkBody()

    def show(self, title: Text, passages: Sequence[Passage]) -> None:
        """Show the model's state and its turns."""
        self.query_one(Static).update(title)
        self.query_one(TalkBody).show(passages)


class ChatScreen(Screen[None]):
    """A chat. The models are loaded when it opens and end when it closes.

    Args:
        target: the models, and how they are asked.
        opener: makes the session of a model.
    """

    key_scopes: ClassVar[tuple[str, ...]] = ("chat",)
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("chat"),
    ]
    CSS = """
    ChatScreen { layout: vertical; }
    ChatScreen > #panes { layout: vertical; height: 1fr; }
    ChatScreen > #state { height: 1; background: $surface; color: $text-muted; padding: 0 1; text-wrap: nowrap;
        text-overflow: ellipsis; }
    ChatScreen.-wide > #panes { layout: horizontal; }
    ChatScreen.-wide TalkPane.second { border-left: solid $frame; }
    """

    def __init__(self, target: ChatTarget, opener: Opener = ChatSession) -> None:
        super().__init__()
        self.dialogue = Dialogue(target)
        self._opener = opener
        self._events: deque[tuple[int, Event]] = deque()
        self._opened_s = time.monotonic()
        self._second = 0
        self._save = target.save

    def compose(self) -> ComposeResult:
        with Container(id="panes"):
            for at in range(len(self.dialogue.speakers)):
                yield TalkPane(classes="second" if at else "first")
        yield Static(id="state")
        yield PromptArea()
        yield KeyBar("chat")

    def on_mount(self) -> None:
        self.query_one(PromptArea).focus()
        take = [partial(self._take, at) for at in range(len(self.dialogue.speakers))]
        jobs = [speaker.job for speaker in self.dialogue.speakers]
        self.dialogue.begin([self._opener(job, each) for job, each in zip(jobs, take, strict=True)])
        self.set_interval(DRAIN_S, self._drain)
        self._show()

    def on_unmount(self) -> None:
        self.dialogue.close()

    def leaving(self) -> str:
        """What closing the screen ends."""
        return "the models are unloaded"

    # ---- what the models send, from their threads

    def _take(self, at: int, event: Event) -> None:
        self._events.append((at, event))

    def _drain(self) -> None:
        loading = any(speaker.ready is None and not speaker.failed for speaker in self.dialogue.speakers)
        second = int(time.monotonic() - self._opened_s) if loading else self._second
        if not self._events and second == self._second:
            return
        self._second = second
        while self._events:
            self.dialogue.handle(*self._events.popleft())
        self._show()

    # ---- keys

    @on(PromptArea.Sent)
    def _send(self, event: PromptArea.Sent) -> None:
        if not self.dialogue.can_answer:
            say(self, "no model is loaded; ^r loads it again", "error")
        elif self.dialogue.busy:
            say(self, "the answer is not complete; esc stops it", "warning")
        else:
            self.query_one(PromptArea).keep(event.text)
            self.dialogue.send(event.text)
            self._show()

    def action_stop_or_back(self) -> None:
        """Stop the answer; without one, close the screen."""
        if self.dialogue.stop():
            self._show()
        else:
            self.app.call_later(self.app.run_action, "back")

    def action_regenerate(self) -> None:
        """Ask for the last answer again; a model whose process has ended is loaded again for it."""
        if self._load_again() and not self.dialogue.turns:
            self._show()
            return
        if self.dialogue.busy or not self.dialogue.turns:
            say(self, "there is no complete answer yet", "warning")
            return
        if not self.dialogue.sampling.temperature:
            say(self, "with temperature 0 an answer is the same each time; ^g sets the temperature")
        self.dialogue.regenerate()
        self._show()

    def _load_again(self) -> bool:
        """Load the models that failed, unless one answers; returns whether there was one."""
        failed = [at for at, speaker in enumerate(self.dialogue.speakers) if speaker.failed]
        if self.dialogue.busy or not failed:
            return False
        for at in failed:
            self.dialogue.load_again(at, self._opener(self.dialogue.speakers[at].job, partial(self._take, at)))
        self._opened_s = time.monotonic()
        return True

    def action_adapter(self) -> None:
        """Switch the adapter off or on for the next answers."""
        if not self.dialogue.has_adapter:
            say(self, "no model here has an adapter", "warning")
            return
        self.dialogue.adapter = not self.dialogue.adapter
        self._show()

    def action_new(self) -> None:
        """Begin a new conversation."""
        self.dialogue.clear()
        self._show()

    def action_sampling(self) -> None:
        """Edit the sampling settings."""

        def take(found: Sampling | None) -> None:
            if found is not None:
                self.dialogue.sampling = found
                self._show()

        self.app.push_screen(SamplingScreen(self.dialogue.sampling), take)

    def action_system(self) -> None:
        """Edit the system prompt."""

        def take(text: str | None) -> None:
            if text is not None:
                self.dialogue.system = text
                self._show()

        body = "It is sent before the first turn, from the next prompt on. Empty: none."
        self.app.push_screen(AskScreen("System prompt", body, lambda _text: None, self.dialogue.system, ASKS), take)

    def action_prompts(self) -> None:
        """Choose a saved prompt."""
        try:
            saved = read_prompts(prompts_file())
        except OperatorError as error:
            say_error(self, error)
            return
        if not saved:
            say(self, "no saved prompts yet; f3 saves the prompt that is written")
            return

        def take(names: list[str] | None) -> None:
            one = next((one for one in saved if names and one.name == names[0]), None)
            if one is not None:
                self.query_one(PromptArea).write(one.prompt)
                self.dialogue.system = one.system or self.dialogue.system
                self._show()

        self.app.push_screen(PickScreen("Saved prompts", [one.name for one in saved], search=True), take)

    def action_keep_prompt(self) -> None:
        """Save the prompt that is written, or the last one, under a name."""
        text = self.query_one(PromptArea).text.strip() or self._last_prompt()
        if not text:
            say(self, "write a prompt first", "warning")
            return

        def take(name: str | None) -> None:
            if name is None:
                return
            try:
                save_prompt(prompts_file(), SavedPrompt(name.strip(), text, self.dialogue.system))
            except OperatorError as error:
                say_error(self, error)
            else:
                say(self, f"saved as {name.strip()!r} in {prompts_file()}")

        body = "The name of the prompt, with the system prompt. A prompt of the same name is replaced."
        self.app.push_screen(AskScreen("Save the prompt", body, _named, "", ASKS), take)

    def action_save(self) -> None:
        """Add the conversations to a file."""
        rows = [row for row in (speaker.talk.row() for speaker in self.dialogue.speakers) if row]
        if not rows:
            say(self, "there is no answer to save yet", "warning")
            return

        def take(name: str | None) -> None:
            if name is None:
                return
            self._save = Path(name).expanduser().absolute()
            try:
                for row in rows:
                    append_row(self._save, row)
            except OperatorError as error:
                say_error(self, error)
            else:
                say(self, f"added {fmt.counted(len(rows), 'conversation')} to {self._save}")

        body = "Each conversation is added as a row of messages, which data of a stage takes."
        given = str(self._save or Path("conversations.jsonl").absolute())
        self.app.push_screen(AskScreen("Save the conversation", body, _writable, given, ASKS), take)

    def action_copy_answer(self) -> None:
        """Copy the last answers."""
        answers = [speaker.talk.turns[-1].answer for speaker in self.dialogue.speakers if speaker.talk.turns]
        text = "\n\n".join(answer for answer in answers if answer)
        say(self, copy(self.app, text)[:400] if text else "there is no answer to copy yet")

    def action_new_line(self) -> None:
        """Begin a new line of the prompt."""
        self.query_one(PromptArea).insert("\n")

    def action_scroll_talk(self, by: int) -> None:
        """Scroll the conversations."""
        for body in self.query(TalkBody):
            rows = by * max(1, body.size.height - 1)
            body.scroll_to(y=body.scroll_offset.y + rows, animate=False, force=True)

    # ---- drawing

    def _last_prompt(self) -> str:
        turns = self.dialogue.speakers[0].talk.turns
        return turns[-1].prompt if turns else ""

    def _show(self) -> None:
        if not self.is_mounted:
            return
        now = time.monotonic() - self._opened_s
        for pane, speaker in zip(self.query(TalkPane), self.dialogue.speakers, strict=True):
            pane.show(self._title(speaker), passages_of(speaker, now))
        state = Text(no_wrap=True, overflow="ellipsis")
        if self.dialogue.slow:
            state.append(f"{SLOWER}  ", palette(self.app.theme_variables)["warning"])
        self.query_one("#state", Static).update(state.append(self._state()))

    def _title(self, speaker: Speaker) -> Text:
        colours = palette(self.app.theme_variables)
        title = Text(safe_text(speaker.title, 100), style="bold", no_wrap=True, overflow="ellipsis")
        if speaker.failed:
            title.append("  failed", colours["error"])
        elif speaker.ready is None:
            title.append("  loading", colours["warning"])
        else:
            ready = speaker.ready
            state = "answers" if self.dialogue.answering is speaker else "ready"
            title.append(f"  {state}", colours["primary" if state == "answers" else "success"])
            facts = [ready.runtime, ready.dtype, fmt.counted(ready.threads, "thread")]
            if ready.plain:
                facts.append("continues text")
            title.append(f"  {safe_text(', '.join(facts), 100)}", colours["text-muted"])
        return title

    def _state(self) -> str:
        """The settings of the next answer."""
        sampling = self.dialogue.sampling
        shown = ["greedy"] if not sampling.temperature else []
        if sampling.temperature:
            names = ("temperature", "top_p", "top_k", "seed")
            shown += [f"{name} {setting_text(sampling, name)}" for name in names]
        if sampling.repetition_penalty != 1.0:
            shown.append(f"repetition_penalty {setting_text(sampling, 'repetition_penalty')}")
        shown.append(f"at most {sampling.max_new_tokens} tokens")
        if self.dialogue.has_adapter:
            shown.append(f"adapter {'on' if self.dialogue.adapter else 'off'}")
        return "  ".join(shown)


def _named(text: str) -> None:
    if not text.strip():
        raise OperatorError("write a name")


def _writable(text: str) -> None:
    path = Path(text).expanduser().absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise OperatorError(f"{printable(str(path), 300)} is not a file in a folder that exists")
