"""The completion script for bash, generated from the parser; it needs bash 4 or newer and no other package."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from cockpit.command_line.parser import CommandParser
from cockpit.command_line.values import Values, takes_value, values_of

_HEAD = """\
# bash completion for cockpit; generate it again after an update: cockpit completion bash

# Sets `sources` and `words` for the value of an option; returns 1 for an option without a value.
_cockpit_option() {
    sources='' words=''
    case "$1 $2" in
@OPTIONS@
        *) return 1 ;;
    esac
}

# Sets the options of a command, its maximum number of arguments, and `sources` and `words` for their values.
_cockpit_command() {
    options='' most=0 sources='' words=''
    case "$1" in
@COMMANDS@
    esac
}

# Runs, stages or recipes, from the program that is being completed.
_cockpit_values() {
    local program=${typed[0]}
    [[ $program == '~/'* ]] && program=$HOME/${program:2}
    "$program" completion --values "$1" ${runs_dir:+--runs-dir "$runs_dir"} 2> /dev/null
}

# Adds files or folders to the candidates.
_cockpit_paths() {
    compopt -o filenames 2> /dev/null
    mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen "$1" -- "$cur")
}

_cockpit() {
    local line=${COMP_LINE:0:COMP_POINT} cur='' command='' option='' runs_dir='' given=0 word
    local options most sources words source found
    local -a typed
    if [[ $line == *[\\"\\']* ]]; then # quoted words are left to bash, which completes file names
        compopt -o default 2> /dev/null
        return
    fi
    # bash splits words at ':' and '=' too, so they are read from the line itself.
    read -a typed <<< "$line"
    if [[ $line != *[[:space:]] || $line == *'\\ ' ]]; then
        cur=${typed[-1]}
        unset 'typed[-1]'
    fi
    for word in "${typed[@]:1}"; do
        if [[ -n $option ]]; then
            [[ $option == --runs-dir ]] && runs_dir=$word
            option=''
        elif [[ $word == -* ]]; then
            _cockpit_option "$command" "$word" && option=$word
        elif [[ -z $command ]]; then
            command=$word
        else
            given=$((given + 1))
        fi
    done
    if [[ -z $option && $cur == --*=* ]]; then
        option=${cur%%=*}
        cur=${cur#*=}
        _cockpit_option "$command" "$option" || return
    elif [[ -n $option ]]; then
        _cockpit_option "$command" "$option"
    else
        _cockpit_command "$command"
        if [[ $cur == -* ]]; then
            sources='' words=$options
        elif ((given >= most)); then
            return
        fi
    fi
    found=$words
    for source in $sources; do
        case $source in
            files | folders) ;;
            *) found+=" $(_cockpit_values "$source")" ;;
        esac
    done
    COMPREPLY=($(compgen -W "$found" -- "$cur"))
    case " $sources " in
        *' files '*) _cockpit_paths -f ;;
        *' folders '*) _cockpit_paths -d ;;
    esac
    # bash treats the part up to the last ':' or '=' as an earlier word, so candidates must not repeat it.
    word=${cur%"${cur##*[:=]}"}
    [[ -n $word ]] && COMPREPLY=("${COMPREPLY[@]#"$word"}")
}

complete -F _cockpit cockpit
"""


def script(parser: CommandParser) -> str:
    """The script for a command line."""
    options = "\n".join(_option_cases(parser))
    commands = "\n".join(_command_cases(parser))
    return _HEAD.replace("@OPTIONS@", options).replace("@COMMANDS@", commands)


def _option_cases(root: CommandParser) -> Iterator[str]:
    for name, parser in {"": root, **root.commands()}.items():
        for option in parser.options():
            if takes_value(option):
                pattern = " | ".join(f"'{name} {text}'" for text in option.option_strings)
                yield f"        {pattern}) {_assign(values_of(option))} ;;"


def _command_cases(root: CommandParser) -> Iterator[str]:
    commands = root.commands()
    yield f"        '') options='{_flags(root.options())}' most=1 sources='' words='{' '.join(commands)}' ;;"
    for name, parser in commands.items():
        arguments = parser.arguments()
        most = 99 if any(argument.nargs in ("*", "+") for argument in arguments) else len(arguments)
        offered = _assign(values_of(arguments[0]) if arguments else Values())
        yield f"        {name}) options='{_flags(parser.options())}' most={most} {offered} ;;"


def _flags(options: Iterable[argparse.Action]) -> str:
    return " ".join(text for option in options for text in option.option_strings)


def _assign(offered: Values) -> str:
    return f"sources='{' '.join(offered.sources)}' words='{' '.join(offered.words)}'"
