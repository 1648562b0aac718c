"""Lines of the log say why an attempt ended, once."""

from cockpit.runs.log_lines import line_of
from engines.events.attempts import AttemptEnded
from engines.words import EndReason


def test_a_reason_that_the_supervisor_alone_knows_is_in_the_line() -> None:
    ended = AttemptEnded(stage="base", attempt=1, reason=EndReason.ERROR, exit=2, detail="the port is taken")
    assert "the port is taken" in line_of(ended).text


def test_the_exit_status_after_an_engines_own_reason_is_a_quiet_line() -> None:
    line = line_of(AttemptEnded(stage="base", attempt=1, reason=EndReason.ERROR, exit=1))
    assert (line.level, "exited with status 1" in line.text) == ("quiet", True)
