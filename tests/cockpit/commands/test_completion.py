"""Shell completion and the manual page cover everything that the parser declares."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cockpit.cli import ENVIRONMENT, build_parser
from cockpit.command_line import bash, fish, zsh
from cockpit.command_line.values import placeholder, takes_value
from cockpit.man import man_page
from recipes.shipped import shipped_recipes
from tests.cockpit.command_line import CODE_ROOT, CommandLine

PARSER = build_parser()
OPTIONS = [
    (name, text) for name, parser in PARSER.commands().items() for o in parser.options() for text in o.option_strings
]
MAN_PAGE = CODE_ROOT / "docs" / "cockpit.1"
RUN = "20261120-2130-first"
STAGES = ("base", "gguf")

needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
needs_fish = pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
needs_groff = pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")


@pytest.fixture
def line(tmp_path: Path) -> CommandLine:
    """A folder with a run, a `cockpit` program, a recipe and a folder."""
    made = CommandLine(tmp_path)
    for stage in STAGES:
        (made.runs / RUN / "stages" / stage / "out").mkdir(parents=True)
    (made.runs / RUN / "run.json").write_text("{}")
    (tmp_path / "mine.toml").touch()
    (tmp_path / "my recipe.toml").touch()
    (tmp_path / "models").mkdir()
    return made


def shell(line: CommandLine, *command: str, script: str) -> str:
    """What a shell prints for a script, with `cockpit` on its path."""
    programs = line.folder / ".programs"
    programs.mkdir(exist_ok=True)
    (programs / "cockpit").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cockpit "$@"\n')
    (programs / "cockpit").chmod(0o755)
    done = subprocess.run(
        [*command, script],
        env={**line.environment(), "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(line.folder)},
        cwd=line.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def in_bash(line: CommandLine, typed: str) -> list[str]:
    """What bash offers after the typed text."""
    ask = 'COMP_LINE=$1 COMP_POINT=${#1}; _cockpit; printf "%s\\n" "${COMPREPLY[@]}"'
    script = f'eval "$(cockpit completion bash)"\nask() {{ {ask}; }}\nask "{typed}"'
    return sorted(shell(line, "bash", "--norc", "-c", script=script).split())


def in_fish(line: CommandLine, typed: str) -> list[str]:
    script = f"cockpit completion fish | source\ncomplete -C '{typed}'"
    return sorted(text.split("\t")[0] for text in shell(line, "fish", "--no-config", "-c", script=script).splitlines())


OFFERS = [
    ("cockpit re", ["render", "replay", "resume"]),
    ("cockpit show ", [RUN, "last"]),
    ("cockpit run de", ["debian-corpus", "demo"]),
    ("cockpit check mi", ["mine.toml"]),
    ("cockpit export --imatrix ", ["always", "auto", "never"]),
    ("cockpit completion ", ["bash", "fish", "zsh"]),
    ("cockpit run --set ", []),
    ("cockpit stop --n", ["--now"]),
    ("cockpit --runs-dir nowhere show ", []),
    ("cockpit --runs-dir runs show l", ["last"]),
]


@pytest.mark.parametrize(("typed", "offered"), OFFERS)
def test_bash_offers_commands_options_choices_runs_recipes_and_files(
    line: CommandLine, typed: str, offered: list[str]
) -> None:
    assert in_bash(line, typed) == offered


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("cockpit show last ", []),
        ("cockpit export --imatrix=a", ["always", "auto"]),
        ("cockpit merge last:", sorted(STAGES)),  # bash treats `last:` as a separate word
        ("cockpit export --llama-cpp mo", ["models"]),
        (r"cockpit check my\\ re", ["my", "recipe.toml"]),
        ("cockpit check 'mi", []),  # bash itself completes quoted words
    ],
)
def test_bash_splits_words_where_the_command_line_does_not(line: CommandLine, typed: str, offered: list[str]) -> None:
    assert in_bash(line, typed) == offered


@needs_fish
@pytest.mark.parametrize(("typed", "offered"), OFFERS)
def test_fish_offers_the_same(line: CommandLine, typed: str, offered: list[str]) -> None:
    assert in_fish(line, typed) == offered


HOME_OFFERS = ("~/.programs/cockpit show ", [RUN, "last"])


def test_bash_asks_a_program_that_is_typed_with_a_tilde(line: CommandLine) -> None:
    assert in_bash(line, HOME_OFFERS[0]) == HOME_OFFERS[1]


@needs_fish
def test_fish_asks_a_program_that_is_typed_with_a_tilde_and_says_nothing_of_one_that_is_missing(
    line: CommandLine,
) -> None:
    assert in_fish(line, HOME_OFFERS[0]) == HOME_OFFERS[1]
    assert in_fish(line, "nowhere/cockpit show ") == []


@needs_zsh
def test_zsh_reads_its_script_and_knows_the_command(line: CommandLine) -> None:
    script = 'autoload -Uz compinit; compinit -u; eval "$(cockpit completion zsh)"; print $_comps[cockpit]'
    assert shell(line, "zsh", "-f", "-c", script=script) == "_cockpit\n"
    file = (
        "fpath=($PWD $fpath); cockpit completion zsh > _cockpit; autoload -Uz compinit; compinit -u; print "
        "$_comps[cockpit]"
    )
    assert shell(line, "zsh", "-f", "-c", script=file) == "_cockpit\n"


def test_values_are_newest_first_and_names_that_a_shell_could_misread_are_left_out(line: CommandLine) -> None:
    for name in ("20261121-0900-second", "20261119-0900-$(reboot)"):
        (line.runs / name).mkdir()
        (line.runs / name / "run.json").write_text("{}")
    assert line.run("completion", "--values", "runs").stdout.split() == ["last", "20261121-0900-second", RUN]
    assert line.run("completion", "--values", "stages").stdout.split() == [f"{RUN}:{stage}" for stage in STAGES]
    shipped = [path.stem for path in shipped_recipes()]
    assert line.run("completion", "--values", "recipes").stdout.split() == shipped


def test_completion_without_a_shell_is_a_usage_error(line: CommandLine) -> None:
    done = line.run("completion")
    assert (done.returncode, done.stdout) == (2, "")
    assert "allowed: bash, zsh, fish" in done.stderr


@pytest.mark.parametrize("make", [bash.script, zsh.script, fish.script, man_page])
def test_every_command_is_in_every_script_and_the_manual(make: object) -> None:
    assert callable(make)
    text = make(PARSER).replace("\\-", "-")
    assert [name for name in PARSER.commands() if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_of_every_command_is_in_every_script_and_the_manual(name: str, option: str) -> None:
    assert re.search(rf"^ +{name}\) options='[^']*{option}\b", bash.script(PARSER), re.MULTILINE)
    in_zsh = re.search(rf"^ +{name}\) _arguments(.*?);;", zsh.script(PARSER), re.MULTILINE | re.DOTALL)
    assert in_zsh
    assert re.search(rf"[')*]{option}[=\[]", in_zsh[1])
    flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
    assert re.search(rf"seen_subcommand_from {name}'.* {flag} ", fish.script(PARSER))
    manual = man_page(PARSER).replace("\\-", "-")
    section = re.search(rf'^\.SS "cockpit {name}"\n(.*?)^\.S[SH]', manual, re.MULTILINE | re.DOTALL)
    assert section
    shared = {text for shared in PARSER.options() for text in shared.option_strings}
    assert option in shared or rf"\fB{option}\fR" in section[1]


def test_the_manual_names_the_value_of_every_option_and_every_argument() -> None:
    manual = man_page(PARSER).replace("\\-", "-")
    for parser in PARSER.commands().values():
        for option in filter(takes_value, parser.options()):
            assert rf"\fI{placeholder(option)}\fR" in manual
        for argument in parser.arguments():
            assert f".I {placeholder(argument)}" in manual


def test_the_manual_page_is_fresh() -> None:
    assert MAN_PAGE.read_text(encoding="utf-8") == man_page(PARSER), "run: make docs"


def test_the_manual_names_every_variable_that_the_product_reads() -> None:
    text = "".join(
        path.read_text() for part in ("cockpit", "engines", "exporters") for path in (CODE_ROOT / part).rglob("*.py")
    )
    internal = {"COCKPIT_RUN_ROOT", "COCKPIT_RUN_MARK", "COCKPIT_CARD", "COCKPIT_TEST_FAULTS", "COCKPIT_TORCHRUN_PID"}
    assert set(re.findall(r'"(COCKPIT_[A-Z_]+)"', text)) - internal == set(ENVIRONMENT)


@needs_groff
def test_groff_reports_no_warnings_about_the_manual() -> None:
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", str(MAN_PAGE)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
