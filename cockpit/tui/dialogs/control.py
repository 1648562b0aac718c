"""The questions before a request to a running training: for its value, or whether to send it."""

from __future__ import annotations

from collections.abc import Callable

from cockpit.launching.requests import parsed
from cockpit.runs.state import StageView
from cockpit.text import formatting as fmt
from cockpit.tui.dialogs.ask import AskScreen
from cockpit.tui.dialogs.confirm import Answer, ConfirmScreen
from engines.words import Verb
from recipes.problems import OperatorError

SEND = "send"


def value_question(verb: Verb, stage: StageView | None, *, prompts: int = 0) -> AskScreen:
    """Ask for the value of a request that takes one. Returns the text, or None.

    Args:
        verb: the request.
        stage: the running stage.
        prompts: how many prompts the recipe has for samples; without one, the operator gives it.
    """
    step = stage.last_step if stage is not None else None
    at = f"It was at step {step.step} just now. " if step is not None else ""
    match verb:
        case Verb.LEARNING_RATE:
            now = fmt.learning_rate(step.learning_rate) if step is not None else "n/a"
            body = f"{at}The last step used a learning rate of {now}. The new peak counts from the next step on, and "
            return AskScreen("Peak learning rate", f"{body}after a resume too.", _check(verb))
        case Verb.MAX_STEPS:
            planned = stage.total_steps if stage is not None else None
            plan = f"{planned} steps are planned. " if planned is not None else ""
            body = f"{at}{plan}The stage and its schedule will end at the new step, or at once if that has passed."
            return AskScreen("Last step of the stage", body, _check(verb), "" if planned is None else str(planned))
        case _:
            body = "The model continues or answers this text at the next step; training waits meanwhile."
            empty = f"\nEmpty: {fmt.counted(prompts, 'prompt')} of the recipe." if prompts else ""
            return AskScreen("Prompt", f"{body}{empty}", _check(verb) if prompts else _check_prompt)


def evaluate_question(stage: StageView | None) -> ConfirmScreen:
    """Ask whether to evaluate now. Returns SEND or another answer."""
    body = (
        "The engine evaluates on the held-out data at the next step; training waits meanwhile.\n"
        "The steps that follow are the same as without it."
    )
    name = f" {stage.name}" if stage is not None else ""
    return ConfirmScreen(f"Evaluate{name} now?", body, [Answer("not-now", "Cancel"), Answer(SEND, "Evaluate")])


def _check_prompt(text: str) -> None:
    """Refuse an empty prompt where the recipe has none: the engine would ignore the request."""
    if not text.strip():
        raise OperatorError("sample — got no text; allowed a prompt: the recipe has none", "type one")


def _check(verb: Verb) -> Callable[[str], object]:
    return lambda text: parsed(verb, text)
