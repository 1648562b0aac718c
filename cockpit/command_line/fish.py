"""The completion script for fish, generated from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from cockpit.command_line.parser import CommandParser
from cockpit.command_line.values import Values, takes_value, values_of

_HEAD = """\
# fish completion for cockpit; generate it again after an update: cockpit completion fish

function __cockpit_values
    set -l words (commandline -opc)
    set -l place (contains -i -- --runs-dir $words)
    and set -l folder --runs-dir $words[(math $place + 1)]
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    type -q $program; or return
    $program completion --values $argv[1] $folder 2>/dev/null
end

complete -c cockpit -f
"""
_NO_COMMAND = "__fish_use_subcommand"


def script(parser: CommandParser) -> str:
    """The script for a command line."""
    return _HEAD + "\n".join(_lines(parser)) + "\n"


def _lines(root: CommandParser) -> Iterator[str]:
    commands = root.commands()
    for name, parser in commands.items():
        yield f"complete -c cockpit -n {_NO_COMMAND} -a {name} -d {_quoted(parser.purpose)}"
    for option in root.options():
        yield _option(_NO_COMMAND, option)
    for name, parser in commands.items():
        yield ""
        condition = _quoted(f"__fish_seen_subcommand_from {name}")
        for option in parser.options():
            yield _option(condition, option)
        for argument in parser.arguments():
            offered = _offered(values_of(argument))
            if offered:
                yield f"complete -c cockpit -n {condition}{offered}"


def _option(condition: str, option: argparse.Action) -> str:
    names = "".join(f" -l {text[2:]}" if text.startswith("--") else f" -s {text[1:]}" for text in option.option_strings)
    offered = values_of(option)
    # -x: the value is required and is not a file; -r: the value is required.
    value = f" {'-r' if offered.paths == 'files' else '-x'}{_offered(offered)}" if takes_value(option) else ""
    return f"complete -c cockpit -n {condition}{names}{value} -d {_quoted(str(option.help))}"


def _offered(values: Values) -> str:
    """The part of a `complete` command that lists candidates: words, output of commands, and files."""
    parts = list(values.words) + [f"(__cockpit_values {source})" for source in values.queries]
    if values.paths == "folders":
        parts.append("(__fish_complete_directories)")
    text = f" -a {_quoted(' '.join(parts))}" if parts else ""
    return text + (" -F" if values.paths == "files" else "")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
