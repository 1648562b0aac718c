from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cockpit.headless.file_rows import files_table
from cockpit.headless.lines import PlainLines
from cockpit.headless.report import comparisons, report_lines
from cockpit.headless.run_json import run_json
from cockpit.runs.health import Health
from cockpit.runs.stage_view import StageView
from cockpit.runs.state import RunState, fold
from cockpit.text.text_table import cells
from cockpit.tui.widgets.stage_panel import stage_panel
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.kinds import AnyEvent
from engines.events.results import ArtifactCommitted, Evaluated, SampledText
from engines.events.runs import ControlApplied, RunEnded, RunStarted, StageFailed, StageStarted, StageSucceeded
from engines.journal import Record
from engines.run_dir.paths import RunDir
from engines.words import EndReason, RunStatus, StartReason
from tests.tui import journals
from tests.tui.journals import Journal

PROTOCOL = "answers"


def evaluated(journal: Journal, stage: str, loss: float, answers: dict[str, str], tokens: int = 900) -> None:
    """One evaluate stage, from its start to its end."""
    writer = f"e-{stage}"
    journal.say("s", StageStarted(stage=stage, kind="evaluate"), after_s=1.0)
    journal.open(writer, "engine", stage, 1)
    journal.say(writer, AttemptStarted(stage=stage, kind="evaluate", attempt=1))
    perplexity = math.exp(loss)
    journal.say(
        writer,
        Evaluated(
            stage=stage, attempt=1, step=None, loss=loss, perplexity=perplexity, tokens=tokens, protocol=PROTOCOL
        ),
    )
    for prompt, text in answers.items():
        sample = SampledText(stage=stage, attempt=1, step=None, prompt=prompt, text=text, expected="forty-two")
        journal.say(writer, sample)
    metrics: dict[str, float | None] = {"loss": loss, "perplexity": perplexity, "cpu_s": 2.0}
    journal.say(
        writer,
        StageSucceeded(stage=stage, attempt=1, fingerprint="f", manifest_sha256="m", metrics=metrics),
        after_s=1.0,
    )


def compared(before: float, after: float, **options: int) -> RunState:
    journal = Journal()
    journal.open("s", "supervisor")
    names = ["before", "after"]
    journal.say(
        "s", RunStarted(run="r", recipe="demo", reason=StartReason.LAUNCH, stages=names, kinds=["evaluate"] * 2)
    )
    evaluated(journal, "before", before, {"What?": "no\x1b[2Jidea", "Only here?": "x"})
    evaluated(journal, "after", after, {"What?": "forty-one"}, **options)
    journal.say("s", RunEnded(state=RunStatus.SUCCEEDED), after_s=1.0)
    return fold(journal.events)


def test_two_evaluations_of_the_same_tokens_are_compared_and_their_answers_stand_side_by_side() -> None:
    state = compared(4.0, 3.0)
    text = "\n".join(report_lines(state))
    assert "before 4.000 → after 3.000 (-25.0%)" in text
    question = text[text.index("Question: What?") :].splitlines()
    assert [line.split(maxsplit=1)[0] for line in question[1:4]] == ["expected", "before", "after"]
    assert "forty-one" in question[3]
    assert "Only here?" not in text


def test_evaluations_of_other_tokens_are_not_compared() -> None:
    assert comparisons(compared(4.0, 3.0, tokens=901)) == []


def test_a_report_is_safe_to_print() -> None:
    text = "\n".join(report_lines(compared(4.0, math.nan)))
    assert "\x1b" not in text
    assert "after nan" in text


def test_exported_files_have_a_row_each() -> None:
    metrics: dict[str, float | None] = {}
    for name, size in (("f16", 8e6), ("q4_k_m", 2.5e6)):
        metrics |= {
            f"{name}_bytes": size,
            f"{name}_bits_per_weight": 16.0,
            f"{name}_mean_kl": 1e-8,
            f"{name}_top1": 0.9951,
        }
    journal = Journal()
    journal.open("s", "supervisor")
    journal.say("s", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["gguf"], kinds=["export"]))
    journal.say("s", StageStarted(stage="gguf", kind="export"))
    journal.open("e", "engine", "gguf", 1)
    journal.say("e", StageSucceeded(stage="gguf", attempt=1, fingerprint="f", manifest_sha256="m", metrics=metrics))
    rows = [line.split() for line in report_lines(fold(journal.events))]
    assert ["F16", "7.63", "MiB", "0.008", "16.0", "1e-8", "99.51%"] in rows
    assert ["Q4_K_M", "2.38", "MiB", "0.003", "16.0", "1e-8", "99.51%", "green"] in rows


def test_a_merge_and_its_distance_to_the_adapter_over_its_base_stand_above_the_files() -> None:
    journal = Journal()
    journal.open("s", "supervisor")
    journal.say("s", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["merged"], kinds=["merge"]))
    journal.say("s", StageStarted(stage="merged", kind="merge"))
    journal.open("e", "engine", "merged", 1)
    metrics: dict[str, float | None] = {"bytes": 8e6, "mean_kl": 2e-7, "top1": 1.0}
    journal.say("e", StageSucceeded(stage="merged", attempt=1, fingerprint="f", manifest_sha256="m", metrics=metrics))
    rows = [line.split() for line in report_lines(fold(journal.events))]
    assert ["merged", "7.63", "MiB", "0.008", "2e-7", "100.00%"] in rows


def test_the_time_between_attempts_does_not_count_as_the_stages_time() -> None:
    journal = Journal()
    journal.open("s", "supervisor")
    journal.say("s", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["base"], kinds=["fake"]))
    for attempt in (1, 2):
        writer = f"e{attempt}"
        journal.t += 36_000.0
        journal.say("s", StageStarted(stage="base", kind="fake", attempt=attempt))
        journal.open(writer, "engine", "base", attempt)
        journal.say(writer, AttemptStarted(stage="base", kind="fake", attempt=attempt))
        journal.t += 60.0
        journal.say(writer, AttemptEnded(stage="base", attempt=attempt, reason=EndReason.ERROR))
    row = next(line for line in report_lines(fold(journal.events)) if "base" in line and "fake" in line)
    assert "2m" in row
    assert "h" not in row.replace("fake", "")


def test_the_table_fits_80_columns() -> None:
    for events in (journals.finished().events, journals.live().events, compared(4.0, 3.0)):
        state = events if isinstance(events, RunState) else fold(events)
        table = report_lines(state)
        assert max(len(line) for line in table[: len(state.stages) + 3]) <= 80


def test_every_state_a_run_can_be_in_has_a_report() -> None:
    for events in (
        journals.live().events,
        journals.merging().events,
        journals.failed().events,
        journals.begun().events,
    ):
        for upto in range(0, len(events), 37):
            assert report_lines(fold(events[:upto]))


def test_nan_is_a_string_in_json(tmp_path: Path) -> None:
    events: list[AnyEvent] = journals.failed().events
    value = run_json(RunDir(tmp_path), {"recipe": "x", "parent": None}, fold(events), "failed", Health("failed"))
    json.loads(json.dumps(value, allow_nan=False))
    state = compared(4.0, math.nan)
    value = run_json(RunDir(tmp_path), {"recipe": "x"}, state, "succeeded", Health("succeeded"))
    assert value["stages"][1]["metrics"]["loss"] == "NaN"


def test_artifacts_are_listed_with_size_and_hash(tmp_path: Path) -> None:
    journal = Journal()
    journal.open("e", "engine", "gguf", 1)
    made = ArtifactCommitted(
        stage="gguf", attempt=1, name="F16", kind="gguf", path="stages/gguf/out/x", bytes=7, sha256="ab"
    )
    journal.say("e", made)
    stage = run_json(RunDir(tmp_path), {}, fold(journal.events), "running", Health("running"))["stages"][0]
    assert stage["artifacts"] == [
        {"name": "F16", "kind": "gguf", "path": "stages/gguf/out/x", "bytes": 7, "sha256": "ab"}
    ]


def exported(*types: str, over: int = 0) -> StageView:
    """An export that has measured `over` files, or all of them."""
    journal = Journal()
    journal.open("s", "supervisor")
    journal.say("s", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["gguf"], kinds=["export"]))
    journal.say("s", StageStarted(stage="gguf", kind="export"))
    journal.open("e", "engine", "gguf", 1)
    journal.say("e", AttemptStarted(stage="gguf", kind="export", attempt=1))
    for name in types[: over or None]:
        numbers: dict[str, float | None] = {"mean_kl": 1e-3, "top1": 0.98}
        journal.say(
            "e",
            Evaluated(
                stage="gguf",
                attempt=1,
                step=None,
                loss=2.0,
                perplexity=7.4,
                tokens=9,
                protocol=f"parity:{name}",
                metrics=numbers,
            ),
        )
    metrics: dict[str, float | None] = {}
    for name in types:
        metrics |= {f"{name}_bytes": 4e6, f"{name}_bits_per_weight": 8.5, f"{name}_mean_kl": 1e-3, f"{name}_top1": 0.98}
        metrics |= {f"{name}_tokens_per_second": 100.0, f"{name}_rss_bytes": 9e8}
    if not over:
        done = StageSucceeded(stage="gguf", attempt=1, fingerprint="f", manifest_sha256="m", metrics=metrics)
        journal.say("e", done, after_s=1.0)
    return fold(journal.events).stages[0]


def test_a_running_export_shows_what_it_has_measured() -> None:
    lines = files_table([exported("f16", "q8_0", "q4_k_m", over=2)], 100)
    assert [line.split()[0] for line in lines[2:]] == ["F16", "Q8_0"]
    assert lines[3].endswith("green")


def test_a_table_of_files_has_columns_for_what_was_trained_over_four_bits_only_if_it_was() -> None:
    plain = exported("f16", "q8_0")
    assert "trained" not in files_table([plain])[0]
    plain.metrics |= {"model_kl_to_trained": 0.05, "f16_kl_to_trained": 0.0514, "f16_top1_to_trained": 0.871}
    lines = files_table([plain])
    assert "KL to trained  top-1 to trained" in lines[0]
    assert "0.0514" in lines[2]
    assert "87.10%" in lines[2]
    assert max(map(cells, files_table([plain], 78))) <= 78


def test_a_merge_has_a_row_for_the_adapter_that_is_not_merged() -> None:
    merged = StageView("merged", "merge")
    merged.metrics = {"bytes": 4e6, "mean_kl": 0.05, "top1": 0.9, "kl_to_trained": 0.06, "top1_to_trained": 0.8}
    assert [line.split()[0] for line in files_table([merged])[2:]] == ["merged"]
    merged.metrics |= {"adapter_kl_to_trained": 0.0599, "adapter_top1_to_trained": 0.81}
    assert [line[:24] for line in files_table([merged])[2:]] == ["adapter over 16-bit base", f"{'merged':<24}"]


def test_a_narrow_table_of_files_keeps_the_columns_that_judge_quality() -> None:
    wide, narrow = (files_table([exported("q8_0")], width) for width in (100, 34))
    assert "memory" in wide[0]
    assert narrow[0].split() == ["file", "mean", "KL", "top-1", "light"]
    assert max(map(cells, narrow)) <= 34


def test_the_panel_of_an_export_colours_lights_and_counts_what_does_not_fit() -> None:
    stage = exported("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s")
    panel = stage_panel(stage, 78, 6, {"success": "#00ff00"})
    assert len(panel) <= 6
    assert "more" in panel[-1].plain
    whole = stage_panel(stage, 78, 20, {"success": "#00ff00"})
    row = next(line for line in whole if "Q8_0" in line.plain)
    assert any("#00ff00" in str(span.style) for span in row.spans)


def test_the_report_has_what_requests_changed_while_it_ran() -> None:
    journal = Journal()
    journal.open("s", "supervisor")
    journal.say("s", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["base"], kinds=["fake"]))
    journal.say("s", StageStarted(stage="base", kind="fake", attempt=1))
    journal.open("e", "engine", "base", 1)
    for request, effect in (
        ("learning-rate 1e-4", "peak learning rate is now 1e-4"),
        ("max-steps 0", "ignored: max_steps"),
        ("max-steps 900", "the stage ends at step 900"),
        ("pause", "paused"),
    ):
        journal.say("e", ControlApplied(request=request, by="ann@vm", effect=effect, step=209, stage="base"))
    changed = [line for line in report_lines(fold(journal.events)) if line.startswith("changed while it ran")]
    assert changed == [
        "changed while it ran: base: learning-rate 1e-4 by ann@vm at step 209: peak learning rate is now 1e-4",
        "changed while it ran: base: max-steps 900 by ann@vm at step 209: the stage ends at step 900",
    ]


def test_the_reason_of_a_failure_stands_once_in_lines_and_in_the_report_without_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = "convert exited with status 1: NotImplementedError: no"
    journal = Journal()
    journal.open("s", "supervisor")
    journal.say("s", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["gguf"], kinds=["export"]))
    journal.say("s", StageStarted(stage="gguf", kind="export"))
    journal.open("e", "engine", "gguf", 1)
    journal.say("e", AttemptEnded(stage="gguf", attempt=1, reason=EndReason.ERROR, detail=reason))
    journal.say("s", StageFailed(stage="gguf", reason=f"gguf: {reason} (attempt 1 of 1)"))
    journal.say("s", RunEnded(state=RunStatus.FAILED, reason=f"gguf: {reason} (attempt 1 of 1)"))
    state = fold(journal.events)
    PlainLines().show([Record(event, b"") for event in journal.events], state)
    lines = capsys.readouterr().out
    assert lines.count(reason) == 1
    assert "stage gguf failed (attempt 1 of 1)" in lines
    assert "run failed: stage gguf failed (attempt 1 of 1)" in lines
    assert reason not in "\n".join(report_lines(state, reasons=False))
    assert reason in "\n".join(report_lines(state))
