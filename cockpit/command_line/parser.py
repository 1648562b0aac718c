"""The argument parser of one command: its arguments, its help page and its error messages.

A command's arguments are declared when its parser is first used, so that `cockpit` starts without importing commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from engines.words import ExitCode


class CommandParser(argparse.ArgumentParser):
    """A parser whose help page and error messages have the same form for every command.

    Attributes:
        purpose: what the command does, in one line.
        exit_codes: the meaning of each exit code; empty leaves the section out of the help page.
        environment: what each environment variable sets; empty leaves the section out.
        examples: command lines, each with a sentence about what it does.
    """

    def __init__(self, *, purpose: str, declare: Callable[[CommandParser], None] | None = None, **options: Any) -> None:
        """A parser whose only argument is `--help`.

        Args:
            purpose: what the command does, in one line.
            declare: adds the arguments; called once, before the parser is first used.
            options: passed on to `argparse.ArgumentParser`.
        """
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False, **options)
        self._positionals.title = "arguments"
        self.purpose = purpose
        self.exit_codes: Mapping[ExitCode, str] = {}
        self.environment: Mapping[str, str] = {}
        self.examples: Sequence[tuple[str, str]] = ()
        self._declare = declare
        self._commands: argparse._SubParsersAction[CommandParser] | None = None
        self.add_argument("-h", "--help", action="help", help="show this page")

    def add_commands(self, purposes: Mapping[str, str], declare: Callable[[str, CommandParser], None]) -> None:
        """Add subcommands.

        Args:
            purposes: purpose of each command, by name.
            declare: adds one command's arguments to its parser.
        """
        self._commands = self.add_subparsers(
            title="commands", dest="command", metavar="COMMAND", parser_class=CommandParser
        )
        for name, purpose in purposes.items():
            self._commands.add_parser(
                name, help=purpose, purpose=purpose, declare=lambda parser, name=name: declare(name, parser)
            )

    def commands(self) -> dict[str, CommandParser]:
        """The parsers of the commands by name, with their arguments declared."""
        if self._commands is None:
            return {}
        found = dict(self._commands.choices)
        for parser in found.values():
            parser.complete()
        return found

    def options(self) -> list[argparse.Action]:
        """The options, in the order of the help page; hidden ones are left out."""
        self.complete()
        return [a for a in self._actions if a.option_strings and a.help != argparse.SUPPRESS]

    def arguments(self) -> list[argparse.Action]:
        """The positional arguments, without the command."""
        self.complete()
        return [a for a in self._actions if not a.option_strings and a is not self._commands]

    def complete(self) -> None:
        """Declare the arguments, once."""
        declare, self._declare = self._declare, None
        if declare is not None:
            declare(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse; the parser that finds an unknown option or argument reports it, so that the hint names its command."""
        self.complete()
        if self._commands is None and args is not None:
            self._refuse_unknown_options(args)
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            what = "unknown option" if unknown[0].startswith("-") else "unexpected argument"
            self.error(f"{what} {unknown[0]!r}")
        return found, unknown

    def format_help(self) -> str:
        """The page: purpose, usage, arguments, options, exit codes, environment, examples."""
        self.complete()
        page = [f"{self.purpose[0].upper()}{self.purpose[1:]}.", "", super().format_help().rstrip()]
        if self.exit_codes:
            page += ["", "exit codes:", *(f"  {code.value:<4} {meaning}" for code, meaning in self.exit_codes.items())]
        if self.environment:
            longest = max(map(len, self.environment))
            page += ["", "environment:", *(f"  {name:<{longest}}  {use}" for name, use in self.environment.items())]
        if self.examples:
            page += ["", "examples:"]
            for command, effect in self.examples:
                page += [f"  # {effect}", f"  {command}"]
        return "\n".join(page) + "\n"

    def error(self, message: str) -> NoReturn:
        """Two lines on stderr, and exit code 2."""
        from cockpit.text.safe_text import safe_lines

        first, *rest = (
            message.removeprefix("argument ").split(": ", 1) if message.startswith("argument ") else [message]
        )
        text = " — ".join([first, *rest])
        self.exit(ExitCode.MISTAKE, "\n".join(safe_lines(f"cockpit: {text}")) + f"\n  see: {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a command or a value that is not one of the choices."""
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        hint = _near(str(value), names)
        if action is self._commands:
            raise argparse.ArgumentError(None, f"unknown command {value!r}{hint}")
        raise argparse.ArgumentError(action, f"got {value!r}; allowed: {', '.join(names)}{hint}")

    def _refuse_unknown_options(self, words: Iterable[str]) -> None:
        """Report a misspelled option first, before errors that follow from it, such as a missing argument."""
        known = [text for action in self._actions for text in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            if word == "--":
                return
            if name.startswith("--") and " " not in name and not any(text.startswith(name) for text in known):
                self.error(f"unknown option {name}{_near(name, known)}")


def _near(word: str, names: Iterable[str]) -> str:
    from recipes.problems import closest

    hint = closest(word, names)
    return f"; {hint}" if hint else ""
