"""`python -m cockpit.man > cockpit.1`: the manual page, generated from the same parser as the help pages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence

import cockpit
from cockpit.cli import build_parser
from cockpit.command_line.parser import CommandParser
from cockpit.command_line.values import placeholder, takes_value
from engines.words import ExitCode

FILES = {
    "~/.local/share/cockpit/runs": "Runs, one folder each ($XDG_DATA_HOME/cockpit/runs if XDG_DATA_HOME is set).",
}


def man_page(parser: CommandParser) -> str:
    """The manual page in roff, with the macros of man(7)."""
    return "\n".join(_lines(parser)) + "\n"


def _lines(root: CommandParser) -> Iterator[str]:
    yield f'.TH COCKPIT 1 "" "cockpit {cockpit.__version__}" "User commands"'
    yield from (".SH NAME", _text(f"cockpit - {root.purpose}"))
    yield from (".SH SYNOPSIS", _synopsis("cockpit", root, "[COMMAND ...]"))
    yield from (".SH OPTIONS", *_options(root))
    yield ".SH COMMANDS"
    yield _text("Every command also takes --help and --runs-dir.")
    shared = {tuple(option.option_strings) for option in root.options()}
    for name, parser in root.commands().items():
        yield from (f'.SS "cockpit {name}"', _sentence(parser.purpose))
        yield from (".PP", _synopsis(f"cockpit {name}", parser, ""))
        yield from _options(parser, shared)
        yield from _codes(parser.exit_codes, ".PP\nExit codes:")
        yield from _examples(parser.examples)
    yield from _codes(root.exit_codes, ".SH EXIT STATUS")
    yield ".SH ENVIRONMENT"
    yield from _terms(root.environment)
    yield ".SH FILES"
    yield from _terms(FILES)
    yield ".SH EXAMPLES"
    yield from _examples(root.examples)


def _synopsis(program: str, parser: CommandParser, rest: str) -> str:
    arguments = [_shown(argument) for argument in parser.arguments()]
    options = "[OPTION ...]"
    return f".B {_text(program)}\n" + _text(" ".join(filter(None, [options, *arguments, rest])))


def _shown(argument: argparse.Action) -> str:
    name = placeholder(argument)
    return {"*": f"[{name} ...]", "+": f"{name} ...", "?": f"[{name}]"}.get(str(argument.nargs), name)


def _options(parser: CommandParser, known: Collection[tuple[str, ...]] = ()) -> Iterator[str]:
    """Arguments and options, without the options in `known`."""
    for argument in parser.arguments():
        yield from (".TP", f".I {_text(placeholder(argument))}", _sentence(str(argument.help)))
    for option in parser.options():
        if tuple(option.option_strings) in known:
            continue
        names = ", ".join(rf"\fB{_text(name)}\fR" for name in option.option_strings)
        value = rf" \fI{_text(placeholder(option))}\fR" if takes_value(option) else ""
        yield from (".TP", names + value, _sentence(str(option.help)))


def _codes(codes: Mapping[ExitCode, str], heading: str) -> Iterator[str]:
    if codes:
        yield heading
        yield from _terms({str(code.value): f"{meaning}." for code, meaning in codes.items()})


def _examples(examples: Sequence[tuple[str, str]]) -> Iterator[str]:
    for command, effect in examples:
        yield from (".PP", _text(effect), ".PP", ".nf", ".RS", _text(command), ".RE", ".fi")


def _terms(terms: Mapping[str, str]) -> Iterator[str]:
    for term, meaning in terms.items():
        yield from (".TP", rf"\fB{_text(term)}\fR", _sentence(meaning))


def _sentence(text: str) -> str:
    return _text(f"{text[0].upper()}{text[1:].rstrip('.')}.")


def _text(text: str) -> str:
    """Text that roff prints unchanged: escapes and leading dots have no effect, and hyphens can be copied."""
    safe = text.replace("\\", r"\(rs").replace("-", r"\-").replace("~", r"\(ti").replace("^", r"\(ha")
    safe = safe.replace("'", r"\(aq").replace("`", r"\(ga")
    return rf"\&{safe}" if safe.startswith(".") else safe


if __name__ == "__main__":
    sys.stdout.write(man_page(build_parser()))
