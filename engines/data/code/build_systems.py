"""The build systems of a code base, and the commands that follow from their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.data.code.build_files import (
    cmake_commands,
    go_requirements,
    gradle_facts,
    json_table,
    make_targets,
    part,
    requirement_name,
    text_of,
    toml_table,
    words,
    xml_texts,
)

BUILD, TEST, INSTALL, PREPARE, RUN = "build", "test", "install", "prepare", "run"


@dataclass
class BuildSystem:
    """A build system as its files describe it.

    Attributes:
        name: its name.
        file: the file that shows it, relative to the source.
        commands: the commands of each purpose, in order, from the folder of the file.
        project: the project's name in the file, or empty.
        lists: what the file defines, by noun, such as its targets or scripts.
        dependencies: what the project depends on, by the names of the package manager.
    """

    name: str
    file: str
    commands: dict[str, list[str]] = field(default_factory=dict)
    project: str = ""
    lists: dict[str, list[str]] = field(default_factory=dict)
    dependencies: list[str] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """The folder of the file, relative to the source; empty for the top."""
        return self.file.rpartition("/")[0]


Files = Mapping[str, str]
"""The texts of the files of one folder, by name."""


def build_systems(texts: Mapping[str, str]) -> list[BuildSystem]:
    """The build systems of a tree, the nearest to its top first; of each system, only those nearest to the top.

    Args:
        texts: the texts of the files of builds, by their path.
    """
    folders: dict[str, dict[str, str]] = {}
    for path in sorted(texts):
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, {})[name] = texts[path]
    found: list[BuildSystem] = []
    for folder in sorted(folders, key=lambda path: (path.count("/") + bool(path), path)):
        for marker, read in _READERS.items():
            depth = folder.count("/") + bool(folder)
            if marker not in folders[folder]:
                continue
            system = read(folder + "/" * bool(folder), folders[folder])
            nearest = [one for one in found if system is not None and one.name == system.name]
            if system is not None and all(_depth(one) == depth and one.folder != folder for one in nearest):
                found.append(system)
    return found


def _depth(system: BuildSystem) -> int:
    return system.folder.count("/") + bool(system.folder)


def _cmake(prefix: str, files: Files) -> BuildSystem:
    commands = list(cmake_commands(files["CMakeLists.txt"]))
    used = {name for name, _ in commands}
    system = BuildSystem("CMake", f"{prefix}CMakeLists.txt")
    system.project = next((arguments[0] for name, arguments in commands if name == "project" and arguments), "")
    if not _PLAIN.match(system.project):
        system.project = ""
    presets = json_table(files.get("CMakePresets.json", ""))
    configure, build = _preset_pair(presets)
    system.commands[BUILD] = (
        [f"cmake --preset {configure}", f"cmake --build --preset {build}"]
        if configure
        else ["cmake -B build", "cmake --build build"]
    )
    tests = "enable_testing" in used or any(name == "include" and "CTest" in arguments for name, arguments in commands)
    tested = [text_of(one.get("name")) for one in _shown(presets, "testPresets")] if configure else []
    if tested:
        system.commands[TEST] = [f"ctest --preset {tested[0]}"]
    elif tests and not configure:
        system.commands[TEST] = ["ctest --test-dir build"]
    if "install" in used and not configure:
        system.commands[INSTALL] = ["cmake --install build"]
    for noun, names in (
        ("executables", ("add_executable",)),
        ("libraries", ("add_library",)),
        ("options", ("option",)),
    ):
        first = [
            arguments[0] for name, arguments in commands if name in names and arguments and _PLAIN.match(arguments[0])
        ]
        system.lists[noun] = list(dict.fromkeys(first))
    system.lists["presets"] = [text_of(one.get("name")) for one in _shown(presets, "configurePresets")]
    packages = [arguments[0] for name, arguments in commands if name == "find_package" and arguments]
    system.dependencies = [name for name in dict.fromkeys(packages) if _PLAIN.match(name)]
    return system


_PLAIN = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,100}$")
"""A name that is written literally, without variables."""


def _shown(presets: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The presets of a kind that a user may choose."""
    listed = presets.get(kind)
    shown = (
        [one for one in listed if isinstance(one, dict) and not one.get("hidden")] if isinstance(listed, list) else []
    )
    return [one for one in shown if _PLAIN.match(text_of(one.get("name")))]


def _preset_pair(presets: dict[str, Any]) -> tuple[str, str]:
    """The first preset of a build with its preset of the configuration; empty when the file pairs none."""
    names = {text_of(one.get("name")) for one in _shown(presets, "configurePresets")}
    for one in _shown(presets, "buildPresets"):
        if text_of(one.get("configurePreset")) in names:
            return text_of(one.get("configurePreset")), text_of(one.get("name"))
    return "", ""


def _make(name: str) -> Callable[[str, Files], BuildSystem | None]:
    def read(prefix: str, files: Files) -> BuildSystem | None:
        goal, targets = make_targets(files[name])
        if not targets:
            return None
        system = BuildSystem("Make", prefix + name, lists={"targets": targets})
        build = next((target for target in ("all", "build") if target in targets), goal)
        system.commands[BUILD] = ["make" if build == goal else f"make {build}"]
        for purpose, names in ((TEST, ("test", "check", "tests")), (INSTALL, ("install",)), (RUN, ("run",))):
            if target := next((one for one in names if one in targets), ""):
                system.commands[purpose] = [f"make {target}"]
        return system

    return read


def _autotools(prefix: str, files: Files) -> BuildSystem:
    system = BuildSystem("Autotools", f"{prefix}configure.ac")
    named = re.search(r"AC_INIT\([ \t]{0,4}\[?([^\],)\n]{1,100})", files["configure.ac"])
    system.project = named[1].strip() if named else ""
    system.commands[BUILD] = [*([] if "configure" in files else ["autoreconf -i"]), "./configure", "make"]
    return system


def _node(prefix: str, files: Files) -> BuildSystem:
    table = json_table(files["package.json"])
    manager = text_of(table.get("packageManager")).partition("@")[0]
    locks = {"pnpm-lock.yaml": "pnpm", "yarn.lock": "yarn", "bun.lock": "bun", "bun.lockb": "bun"}
    if manager not in ("npm", "pnpm", "yarn", "bun"):
        manager = next((tool for lock, tool in locks.items() if lock in files), "npm")
    system = BuildSystem(manager, f"{prefix}package.json", project=text_of(table.get("name")))
    scripts = [name for name in words(table.get("scripts")) if re.match(r"^[A-Za-z0-9_:.-]{1,80}$", name)]
    system.lists["scripts"] = scripts
    system.dependencies = [name for key in ("dependencies", "peerDependencies") for name in words(table.get(key))]
    clean = manager == "npm" and "package-lock.json" in files
    system.commands[PREPARE] = ["npm ci" if clean else f"{manager} install"]
    for purpose, names in ((BUILD, ("build", "compile", "dist")), (TEST, ("test",)), (RUN, ("start", "dev", "serve"))):
        if script := next((one for one in names if one in scripts), ""):
            short = script in ("test", "start") and manager != "bun"
            system.commands[purpose] = [f"{manager} {script}" if short else f"{manager} run {script}"]
    return system


def _cargo(prefix: str, files: Files) -> BuildSystem:
    table = toml_table(files["Cargo.toml"])
    workspace = " --workspace" if part(table, "workspace") is not None else ""
    system = BuildSystem("Cargo", f"{prefix}Cargo.toml", project=text_of(part(table, "package", "name")))
    system.commands = {BUILD: [f"cargo build{workspace}"], TEST: [f"cargo test{workspace}"]}
    system.lists["features"] = words(part(table, "features"))
    system.lists["workspace members"] = words(part(table, "workspace", "members"))
    tables = (part(table, "dependencies"), part(table, "workspace", "dependencies"))
    system.dependencies = list(dict.fromkeys(name for one in tables for name in words(one)))
    return system


def _go(prefix: str, files: Files) -> BuildSystem:
    system = BuildSystem("Go modules", f"{prefix}go.mod")
    named = re.search(r"^module[ \t]{1,8}([^\s\"]{1,200})", files["go.mod"], re.MULTILINE)
    system.project = named[1] if named else ""
    system.commands = {BUILD: ["go build ./..."], TEST: ["go test ./..."]}
    system.dependencies = go_requirements(files["go.mod"])
    return system


def _maven(prefix: str, files: Files) -> BuildSystem:
    texts = list(xml_texts(files["pom.xml"]))
    tool = "./mvnw" if "mvnw" in files else "mvn"
    system = BuildSystem("Maven", f"{prefix}pom.xml")
    system.project = next((text for path, text in texts if path == ("project", "artifactId")), "")
    system.commands = {BUILD: [f"{tool} package"], TEST: [f"{tool} test"], INSTALL: [f"{tool} install"]}
    system.lists["modules"] = [text for path, text in texts if path == ("project", "modules", "module")]
    dependency = ("project", "dependencies", "dependency", "artifactId")
    system.dependencies = [text for path, text in texts if path == dependency and _PLAIN.match(text)]
    return system


def _gradle(name: str) -> Callable[[str, Files], BuildSystem]:
    def read(prefix: str, files: Files) -> BuildSystem:
        settings = next((files[one] for one in ("settings.gradle", "settings.gradle.kts") if one in files), "")
        _, plugins, dependencies = gradle_facts(files[name])
        tool = "./gradlew" if "gradlew" in files else "gradle"
        system = BuildSystem("Gradle", prefix + name, project=gradle_facts(settings)[0], dependencies=dependencies)
        system.commands = {BUILD: [f"{tool} build"], TEST: [f"{tool} test"]}
        system.lists["plugins"] = plugins
        return system

    return read


def _meson(prefix: str, files: Files) -> BuildSystem:
    text = files["meson.build"]
    named = re.search(r"\bproject[ \t]{0,4}\(\s{0,20}'([^'\n]{1,100})'", text)
    system = BuildSystem("Meson", f"{prefix}meson.build", project=named[1] if named else "")
    system.commands[BUILD] = ["meson setup build", "meson compile -C build"]
    if re.search(r"(?:^|\W)test[ \t]{0,4}\(", text):
        system.commands[TEST] = ["meson test -C build"]
    system.dependencies = list(
        dict.fromkeys(re.findall(r"\bdependency[ \t]{0,4}\([ \t]{0,4}'([A-Za-z0-9_.+-]{1,80})'", text))
    )
    return system


def _python(prefix: str, files: Files) -> BuildSystem | None:
    table = toml_table(files.get("pyproject.toml", ""))
    described = any(part(table, *keys) is not None for keys in (("project",), ("build-system",), ("tool", "poetry")))
    if not described and "setup.py" not in files:
        return None  # only the settings of tools
    backend = text_of(part(table, "build-system", "build-backend"))
    poetry = part(table, "tool", "poetry") is not None
    file = "pyproject.toml" if "pyproject.toml" in files else "setup.py"
    name = text_of(part(table, "project", "name")) or text_of(part(table, "tool", "poetry", "name"))
    system = BuildSystem(backend.partition(".")[0] or "setuptools", prefix + file, project=name)
    if "poetry.lock" in files or (poetry and not backend):
        system.commands[INSTALL] = ["poetry install"]
    elif "uv.lock" in files:
        system.commands[INSTALL] = ["uv sync"]
    else:
        system.commands[INSTALL] = ["python -m pip install ."]
    if part(table, "tool", "pytest") is not None:
        system.commands[TEST] = ["python -m pytest"]
    elif "tox.ini" in files:
        system.commands[TEST] = ["tox"]
    system.lists["extras"] = words(part(table, "project", "optional-dependencies"))
    system.lists["commands"] = words(part(table, "project", "scripts"))
    required = [requirement_name(line) for line in words(part(table, "project", "dependencies"))]
    listed = [requirement_name(line) for line in files.get("requirements.txt", "").splitlines()]
    poetry_names = [one for one in words(part(table, "tool", "poetry", "dependencies")) if one != "python"]
    system.dependencies = list(
        dict.fromkeys(filter(None, (*required, *poetry_names, *(listed if not required else ()))))
    )
    return system


def _bazel(name: str) -> Callable[[str, Files], BuildSystem]:
    def read(prefix: str, _files: Files) -> BuildSystem:
        return BuildSystem("Bazel", prefix + name, {BUILD: ["bazel build //..."], TEST: ["bazel test //..."]})

    return read


_READERS: Mapping[str, Callable[[str, Files], BuildSystem | None]] = {
    "CMakeLists.txt": _cmake,
    "meson.build": _meson,
    "configure.ac": _autotools,
    "Cargo.toml": _cargo,
    "go.mod": _go,
    "pom.xml": _maven,
    "build.gradle": _gradle("build.gradle"),
    "build.gradle.kts": _gradle("build.gradle.kts"),
    "package.json": _node,
    "pyproject.toml": _python,
    "setup.py": _python,
    "MODULE.bazel": _bazel("MODULE.bazel"),
    "WORKSPACE": _bazel("WORKSPACE"),
    "WORKSPACE.bazel": _bazel("WORKSPACE.bazel"),
    "GNUmakefile": _make("GNUmakefile"),
    "makefile": _make("makefile"),
    "Makefile": _make("Makefile"),
}
"""The reader of each file that shows a build system, in the order in which a folder's systems are listed."""
