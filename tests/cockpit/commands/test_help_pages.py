"""Help pages, and messages about wrong usage."""

from __future__ import annotations

import re
import shlex

import pytest

from cockpit.cli import build_parser
from cockpit.command_line.parser import CommandParser
from cockpit.commands import PURPOSES

COMMANDS = sorted(PURPOSES)
PAGES: dict[str, CommandParser] = {"": build_parser(), **build_parser().commands()}


def examples() -> list[str]:
    """Every example of every page, without what a shell does with it."""
    lines = [command for parser in PAGES.values() for command, _ in parser.examples]
    return [re.sub(r"^.*?(cockpit )|\)\"$| > .*", r"\1", line) for line in lines]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines of the error that the arguments cause."""
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_purpose_usage_options_and_examples_in_this_order(name: str) -> None:
    page = PAGES[name].format_help()
    assert page.splitlines()[0].endswith(".")
    wanted = [f"usage: {f'cockpit {name}'.strip()} [-h]", "\noptions:\n", "\nexamples:\n"]
    places = [page.find(heading) for heading in wanted]
    assert -1 not in places, page
    assert places == sorted(places)
    assert ("\narguments:\n" in page) == bool(PAGES[name].arguments())


@pytest.mark.parametrize("name", PAGES)
def test_every_argument_and_option_is_explained(name: str) -> None:
    unexplained = [action.dest for action in (*PAGES[name].arguments(), *PAGES[name].options()) if not action.help]
    assert not unexplained


@pytest.mark.parametrize("example", examples())
def test_every_example_parses(example: str) -> None:
    words = shlex.split(example)
    assert words[0] == "cockpit"
    if "--help" not in words:
        build_parser().parse_args(words[1:])


def test_every_command_has_an_example_of_its_own() -> None:
    for name in COMMANDS:
        assert any(f"cockpit {name}" in command for command, _ in PAGES[name].examples), name


def test_commands_that_check_or_follow_list_their_exit_codes() -> None:
    without = {name for name in COMMANDS if not PAGES[name].exit_codes}
    assert without == {"ls", "show", "replay", "completion", "du", "note", "mv", "metrics"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelled_option_is_named_with_the_commands_help_page(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message, see = refused(capsys, name, "--runs-dri", "x")
    assert message == "cockpit: unknown option --runs-dri; did you mean --runs-dir?"
    assert see == f"  see: cockpit {name} --help"


def test_a_misspelled_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "quantise", "x") == [
        "cockpit: unknown command 'quantise'; did you mean quantize?",
        "  see: cockpit --help",
    ]


def test_a_wrong_choice_lists_the_allowed_ones(capsys: pytest.CaptureFixture[str]) -> None:
    message, see = refused(capsys, "export", "model", "--imatrix", "allways")
    assert message == "cockpit: --imatrix — got 'allways'; allowed: auto, always, never; did you mean always?"
    assert see == "  see: cockpit export --help"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check"], "the following arguments are required: RECIPE"),
        (["show", "last", "first"], "unexpected argument 'first'"),
        (["replay", "last", "--speed", "0"], "--speed — must be above 0; got '0'; allowed: a number such as 4, or max"),
        (["parity", "x", "--timeout", "soon"], "--timeout — must be a time; got 'soon'; allowed: seconds above 0"),
        (["run", "x", "--json", "--quiet"], "--quiet — not allowed with argument --json"),
        (["show", "\x1b[31mred", "blue\x1b[0m"], "unexpected argument 'blue\\x1b[0m'"),
    ],
)
def test_an_error_is_one_sentence_and_the_help_page_to_read(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *words) == [f"cockpit: {message}", f"  see: cockpit {words[0]} --help"]


def test_an_option_may_be_given_before_the_command_and_after_it() -> None:
    before = build_parser().parse_args(["--runs-dir", "x", "ls"])
    after = build_parser().parse_args(["ls", "--runs-dir", "x"])
    assert before.runs_dir == after.runs_dir == "x"
