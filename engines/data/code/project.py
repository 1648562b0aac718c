"""Questions about a project as a whole: how it is built, and its technology stack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engines.data.code.build_systems import BUILD, INSTALL, PREPARE, RUN, TEST, BuildSystem
from engines.data.code.questions import Fact, listed
from recipes.stages.code_fields import TITLES

_HOW_TO_BUILD = (
    "How do I build this project?",
    "What are the build steps?",
    "How do I compile this project?",
    "Which commands build this project?",
    "How is this project built from source?",
    "How can I build it from the sources?",
    "What must I run to build this project?",
    "Give me the build instructions of this project.",
    "Show me how to build this project.",
    "What is needed to build this project?",
)
_PURPOSES = {
    PREPARE: "Install its dependencies",
    BUILD: "Build it",
    INSTALL: "Install it",
    TEST: "Run the tests",
    RUN: "Run it",
}
_ASKED = {
    TEST: ("How do I run the tests of this project?", "Which command runs the tests?", "How is this project tested?"),
    INSTALL: ("How do I install this project?", "Which command installs this project?"),
    PREPARE: ("How do I install the dependencies of this project?", "Which command installs its dependencies?"),
    RUN: ("How do I run this project?", "Which command starts this project?"),
}
_MOST_LISTED = 40
"""A longer list is given by its number and its first names."""


def build_facts(systems: Sequence[BuildSystem]) -> list[Fact]:
    """Questions about the build: how it is built, tested and installed, and what its files define."""
    if not systems:
        return []
    facts = [Fact("build", question, _steps(systems)) for question in _how_to_build(systems)]
    using = " and ".join(f"{system.name} (`{system.file}`)" for system in systems)
    questions = ("Which build system does this project use?", "What is this project built with?")
    facts += [Fact("build", question, f"The project uses {using}.") for question in questions]
    for purpose, asked in _ASKED.items():
        if any(system.commands.get(purpose) for system in systems):
            facts += [Fact("build", question, _for_purpose(systems, purpose)) for question in asked]
    for system in systems:
        for noun, items in system.lists.items():
            if items:
                question = f"Which {noun} does `{system.file}` define?"
                facts.append(Fact("build", question, f"`{system.file}` defines {_counted(noun, items)}."))
    return facts


def _how_to_build(systems: Sequence[BuildSystem]) -> Iterator[str]:
    yield from _HOW_TO_BUILD
    project = next((system.project for system in systems if system.project), "")
    if project:
        yield from (f"How do I build {project}?", f"Which commands build {project}?")


def _steps(systems: Sequence[BuildSystem]) -> str:
    return "\n\n".join(_steps_of(system) for system in systems)


def _steps_of(system: BuildSystem) -> str:
    where = f" in `{system.folder}`" if system.folder else ""
    lines = [f"The project uses {system.name} (`{system.file}`)."]
    for purpose, title in _PURPOSES.items():
        if purpose in (PREPARE, BUILD, INSTALL, TEST) and (commands := system.commands.get(purpose)):
            lines.append(f"{title}{where}:\n\n{_block(commands)}")
    return "\n\n".join(lines)


def _for_purpose(systems: Sequence[BuildSystem], purpose: str) -> str:
    chosen = [system for system in systems if system.commands.get(purpose)]
    return "\n\n".join(
        f"{_PURPOSES[purpose]} with {system.name}{f' in `{system.folder}`' if system.folder else ''}:\n\n"
        f"{_block(system.commands[purpose])}"
        for system in chosen
    )


def _block(commands: Sequence[str]) -> str:
    return "```bash\n" + "\n".join(commands) + "\n```"


def _counted(noun: str, items: Sequence[str]) -> str:
    count = f"{len(items)} {noun}" if len(items) > 1 else f"1 {_singular(noun)}"
    if len(items) > _MOST_LISTED:
        return f"{count}, the first of which are {listed(items[:_MOST_LISTED])}"
    return f"{count}: {listed(items)}"


def _singular(noun: str) -> str:
    return noun.removesuffix("ies") + "y" if noun.endswith("ies") else noun.removesuffix("s")


def stack_facts(
    systems: Sequence[BuildSystem], files_of: Mapping[str, int], project_license: str, top_folders: Sequence[str]
) -> list[Fact]:
    """Questions about the technology stack: languages, build systems, dependencies, licence and folders.

    Args:
        systems: the build systems.
        files_of: the number of source files of each language.
        project_license: the licence of the top folder; empty when it is not known.
        top_folders: the folders directly below the top that contain sources.
    """
    facts: list[Fact] = []
    order = sorted(files_of, key=lambda language: (-files_of[language], language))
    if order:
        shares = ", ".join(f"{TITLES[one]} ({_files(files_of[one])})" for one in order)
        answer = f"The source files of the project are {shares}."
        facts += [Fact("stack", question, answer) for question in _LANGUAGE_QUESTIONS]
        answer = _stack(systems, shares, project_license)
        facts += [Fact("stack", question, answer) for question in _STACK_QUESTIONS]
    for system in systems:
        if system.dependencies:
            names = system.dependencies
            question = f"Which libraries does this project depend on, according to `{system.file}`?"
            facts.append(Fact("stack", question, f"`{system.file}` names {_counted('dependencies', names)}."))
    if project_license:
        answer = f"The licence file of the project is that of {project_license}."
        facts += [Fact("stack", question, answer) for question in _LICENSE_QUESTIONS]
    if top_folders:
        question = "Which folders contain the sources of this project?"
        facts.append(Fact("stack", question, f"Sources are in {_counted('folders', top_folders)}."))
    return facts


_LANGUAGE_QUESTIONS = (
    "Which programming languages is this project written in?",
    "What languages does this project use?",
)
_STACK_QUESTIONS = (
    "What is the technology stack of this project?",
    "Which technologies does this project use?",
)
_LICENSE_QUESTIONS = ("Under which licence is this project published?", "What is the licence of this project?")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _stack(systems: Sequence[BuildSystem], shares: str, project_license: str) -> str:
    sentences = [f"Languages: {shares}."]
    if systems:
        sentences.append(f"Build: {', '.join(f'{system.name} (`{system.file}`)' for system in systems)}.")
    dependencies = list(dict.fromkeys(name for system in systems for name in system.dependencies))
    if dependencies:
        sentences.append(f"Dependencies: {', '.join(dependencies[:_MOST_LISTED])}" + _more(dependencies) + ".")
    if project_license:
        sentences.append(f"Licence: {project_license}.")
    return "\n".join(sentences)


def _more(names: Sequence[str]) -> str:
    left = len(names) - _MOST_LISTED
    return f" and {left} more" if left > 0 else ""
