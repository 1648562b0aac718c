"""The completion script for zsh, generated from the parser; save it as `_cockpit` in fpath, or `eval` it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from cockpit.command_line.parser import CommandParser
from cockpit.command_line.values import Values, placeholder, takes_value, values_of

_SCRIPT = """\
#compdef cockpit
# zsh completion for cockpit; generate it again after an update: cockpit completion zsh

_cockpit_values() {
    local -a found
    found=(${(f)"$("$_cockpit_program" completion --values "$1" $_cockpit_runs_dir 2> /dev/null)"})
    compadd -- $found
}

_cockpit_runs() { _cockpit_values runs }
_cockpit_stages() { _cockpit_values stages }
_cockpit_recipes() { _cockpit_values recipes }

_cockpit() {
    local curcontext=$curcontext state line _cockpit_program=${(Q)words[1]/#\\~\\//$HOME/}
    local -a _cockpit_runs_dir
    typeset -A opt_args
    (( ${words[(I)--runs-dir]} )) && _cockpit_runs_dir=(--runs-dir "${(Q)words[${words[(I)--runs-dir]}+1]}")
    _arguments -C \\
@ROOT@
        '1:command:->command' '*::argument:->argument'
    case $state in
        command)
            local -a commands=(
@COMMANDS@
            )
            _describe -t commands command commands
            ;;
        argument)
            case $words[1] in
@ARGUMENTS@
            esac
            ;;
    esac
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _cockpit "$@"
else
    compdef _cockpit cockpit
fi
"""


def script(parser: CommandParser) -> str:
    """The script for a command line."""
    commands = parser.commands()
    parts = {
        "@ROOT@": "\n".join(f"        {line} \\" for line in _options(parser)),
        "@COMMANDS@": "\n".join(" " * 16 + _quoted(f"{name}:{command.purpose}") for name, command in commands.items()),
        "@ARGUMENTS@": "\n".join(_case(name, command) for name, command in commands.items()),
    }
    text = _SCRIPT
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text


def _case(name: str, parser: CommandParser) -> str:
    lines = [*_options(parser), *_arguments(parser)]
    return f"                {name}) _arguments \\\n" + " \\\n".join(" " * 20 + line for line in lines) + " ;;"


def _options(parser: CommandParser) -> Iterator[str]:
    for option in parser.options():
        value = ""
        if takes_value(option):
            value = f":{_escaped(placeholder(option))}:{_action(values_of(option))}"
        repeated = isinstance(option, argparse._AppendAction)
        excluded = "*" if repeated else f"({' '.join(option.option_strings)})" if len(option.option_strings) > 1 else ""
        about = _escaped(str(option.help))
        for text in option.option_strings:
            yield _quoted(f"{excluded}{text}{'=' if value and text.startswith('--') else ''}[{about}]{value}")


def _arguments(parser: CommandParser) -> Iterator[str]:
    for number, argument in enumerate(parser.arguments(), 1):
        place = "*" if argument.nargs in ("*", "+") else str(number)
        yield _quoted(f"{place}:{_escaped(placeholder(argument))}:{_action(values_of(argument))}")


def _action(offered: Values) -> str:
    """The zsh action that completes the value."""
    parts = [f"_cockpit_{source}" for source in offered.queries]
    parts += {"files": ["_files"], "folders": ["_files -/"], "": []}[offered.paths]
    if offered.words:
        return f"({' '.join(offered.words)})"
    if len(parts) > 1:
        return "{" + "; ".join(parts) + "}"
    return parts[0] if parts else " "


def _escaped(text: str) -> str:
    """Text for a zsh specification, with brackets, colons and backslashes escaped."""
    return "".join(f"\\{char}" if char in "[]:\\" else char for char in text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
