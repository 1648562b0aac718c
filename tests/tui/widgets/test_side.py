"""The right column of a run's screen."""

from __future__ import annotations

from collections.abc import Mapping

from rich.cells import cell_len

from cockpit.runs.state import RunState
from cockpit.tui.widgets.side import side_column
from engines.events.results import GateChecked, SampledText
from engines.events.runs import ControlApplied
from engines.words import GateResult
from tests.tui.journals import Journal, live

FACTS = {"learning_rate": 2e-4, "max_steps": 820}


def _column(journal: Journal, facts: Mapping[str, object] = FACTS) -> list[str]:
    state = RunState()
    state.apply_all(journal.events)
    stage = next(stage for stage in state.stages if stage.name == "atlas")
    return [line.plain.strip("│| ") for line in side_column(state, stage, facts, None, (44, 40), {})]


def _ask(journal: Journal, request: str, effect: str, stage: str = "atlas") -> None:
    journal.say("e1.atlas", ControlApplied(request=request, by="x", effect=effect, step=413, stage=stage), 1.0)


def test_a_value_that_a_request_changed_stands_below_the_recipes() -> None:
    journal = live()
    assert not any("changed to" in line for line in _column(journal))
    _ask(journal, "learning-rate 0.0001", "peak learning rate is now 1e-4; the next step uses 1e-4")
    _ask(journal, "max-steps 900", "the stage ends at step 900, not 820")
    lines = _column(journal)
    for field, value in (("learning_rate", "0.0001, step 413"), ("max_steps", "900, step 413")):
        place = next(number for number, line in enumerate(lines) if line.startswith(field))
        assert lines[place + 1].split("changed to")[1].strip() == value


def test_a_request_that_was_ignored_or_is_another_stages_changes_nothing() -> None:
    journal = live()
    _ask(journal, "max-steps 10", "ignored: max_steps — got 10")
    _ask(journal, "learning-rate 0.5", "peak learning rate is now 0.5; the next step uses 0.5", stage="other")
    assert not any("changed to" in line for line in _column(journal))


def test_a_sample_has_its_answer_on_a_row_of_its_own_and_breaks_at_words() -> None:
    journal = live()
    prompt, answer = (
        "Which city has the tower that everyone knows?",
        "The tower is in 東京都 and it is\n\nso tall. It is \x1b[1mtall.",
    )
    journal.say("e1.atlas", SampledText(stage="atlas", attempt=1, step=413, prompt=prompt, text=answer))
    lines = _column(journal)
    at = lines.index("Sample at step 413")
    assert lines[at + 1 : at + 6] == [
        "Which city has the tower that everyone",
        "knows?",
        "The tower is in 東京都 and it is",
        "",
        "so tall. It is ␛[1mtall.",
    ]


def test_what_an_evaluation_tests_and_an_export_writes_is_listed_without_brackets() -> None:
    facts = {"test_data": "questions", "checks": [], "file_types": ["F16", "Q4_K_M"], "num_attention_heads": 12}
    lines = _column(live(), facts)
    assert lines[1:4] == [
        "test_data           questions",
        "file_types          F16, Q4_K_M",
        "num_attention_heads 12",
    ]


def test_a_long_path_keeps_its_end_and_a_gate_its_result() -> None:
    journal = live()
    gate = GateChecked(stage="atlas", metric="success", op=">=", limit=0.99, value=0.25, result=GateResult.FAIL)
    journal.say("sup", gate, 1.0)
    lines = _column(journal, {"data": "/a/very/long/folder/of/漢字漢字/questions.jsonl"})
    assert lines[1].endswith("漢字/questions.jsonl")
    assert lines[1].startswith("data                …")
    assert cell_len(lines[1]) <= 42
    assert "gate fail           success >= 0.99" in lines
