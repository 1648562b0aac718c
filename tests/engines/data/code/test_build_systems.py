"""Build systems and their commands follow from the files of the build, and from nothing else."""

from __future__ import annotations

import pytest

from engines.data.code.build_files import cmake_commands, make_targets, requirement_name, xml_texts
from engines.data.code.build_systems import BuildSystem, build_systems
from engines.data.code.project import build_facts, stack_facts

CMAKE = """\
cmake_minimum_required(VERSION 3.20)
project(Imager VERSION 1.2 LANGUAGES CXX) # option(IN_COMMENT "")
option(WITH_NET "Fetch (over HTTP)" OFF)
find_package(ZLIB REQUIRED)
find_package(${SOME} QUIET)
ADD_LIBRARY(imager STATIC a.cpp
    b.cpp)
add_executable(show main.cpp)
add_executable(${NAME} x.cpp)
enable_testing()
install(TARGETS show)
"""
PRESETS = """{"configurePresets": [{"name": "base", "hidden": true}, {"name": "dev"}],
 "buildPresets": [{"name": "fast", "configurePreset": "dev"}]}"""
MAKEFILE = """\
CC := gcc
.PHONY: all test
all: prog
prog: main.o
\tcc -o prog main.o
test: prog
\t./prog --test
%.o: %.c
install:
\tcp prog /usr/bin
"""
PACKAGE = """{"name": "rows", "scripts": {"build": "tsc", "test": "vitest", "lint:fix": "eslint"},
 "dependencies": {"undici": "^6"}, "devDependencies": {"typescript": "5"}}"""
POM = """<project><!-- <artifactId>no</artifactId> --><parent><artifactId>parent</artifactId></parent>
<artifactId>acme-io</artifactId><modules><module>core</module></modules>
<dependencies><dependency><artifactId>slf4j-api</artifactId><exclusions/></dependency></dependencies></project>"""


def one(texts: dict[str, str]) -> BuildSystem:
    found = build_systems(texts)
    assert len(found) == 1
    return found[0]


def test_cmake_gives_its_targets_and_options_and_the_commands_that_they_allow() -> None:
    system = one({"CMakeLists.txt": CMAKE})
    assert (system.name, system.project) == ("CMake", "Imager")
    assert system.commands == {
        "build": ["cmake -B build", "cmake --build build"],
        "test": ["ctest --test-dir build"],
        "install": ["cmake --install build"],
    }
    assert system.lists == {
        "executables": ["show"],
        "libraries": ["imager"],
        "options": ["WITH_NET"],
        "presets": [],
    }
    assert system.dependencies == ["ZLIB"]


def test_presets_of_cmake_decide_the_commands() -> None:
    system = one({"CMakeLists.txt": "project(x)", "CMakePresets.json": PRESETS})
    assert system.commands == {"build": ["cmake --preset dev", "cmake --build --preset fast"]}
    alone = one({"CMakeLists.txt": "project(x)", "CMakePresets.json": '{"configurePresets": [{"name": "dev"}]}'})
    assert alone.commands == {"build": ["cmake -B build", "cmake --build build"]}
    assert alone.lists["presets"] == ["dev"]


@pytest.mark.parametrize(
    ("texts", "name", "commands"),
    [
        ({"Makefile": MAKEFILE}, "Make", {"build": ["make"], "test": ["make test"], "install": ["make install"]}),
        ({"Makefile": "x = 1\n"}, "", {}),
        (
            {"package.json": PACKAGE},
            "npm",
            {"prepare": ["npm install"], "build": ["npm run build"], "test": ["npm test"]},
        ),
        (
            {"package.json": PACKAGE, "package-lock.json": "{}"},
            "npm",
            {"prepare": ["npm ci"], "build": ["npm run build"], "test": ["npm test"]},
        ),
        (
            {"package.json": PACKAGE, "pnpm-lock.yaml": ""},
            "pnpm",
            {"prepare": ["pnpm install"], "build": ["pnpm run build"], "test": ["pnpm test"]},
        ),
        (
            {"Cargo.toml": '[workspace]\nmembers = ["a", "b"]\n'},
            "Cargo",
            {"build": ["cargo build --workspace"], "test": ["cargo test --workspace"]},
        ),
        (
            {"go.mod": "module example.org/rows\n"},
            "Go modules",
            {"build": ["go build ./..."], "test": ["go test ./..."]},
        ),
        (
            {"pom.xml": POM, "mvnw": "#!/bin/sh"},
            "Maven",
            {"build": ["./mvnw package"], "test": ["./mvnw test"], "install": ["./mvnw install"]},
        ),
        (
            {"build.gradle.kts": 'plugins { id("java") }', "settings.gradle.kts": 'rootProject.name = "rows"'},
            "Gradle",
            {"build": ["gradle build"], "test": ["gradle test"]},
        ),
        (
            {"meson.build": "project('rows', 'c')\ntest('a', exe)"},
            "Meson",
            {"build": ["meson setup build", "meson compile -C build"], "test": ["meson test -C build"]},
        ),
        (
            {"pyproject.toml": '[build-system]\nbuild-backend = "hatchling.build"\n[tool.pytest.ini_options]\n'},
            "hatchling",
            {"install": ["python -m pip install ."], "test": ["python -m pytest"]},
        ),
        ({"pyproject.toml": "[tool.black]\nline-length = 100\n"}, "", {}),
        ({"setup.py": "import setuptools"}, "setuptools", {"install": ["python -m pip install ."]}),
        ({"MODULE.bazel": ""}, "Bazel", {"build": ["bazel build //..."], "test": ["bazel test //..."]}),
        ({"configure.ac": "AC_INIT([rows], [1])"}, "Autotools", {"build": ["autoreconf -i", "./configure", "make"]}),
    ],
)
def test_commands_of_each_build_system(texts: dict[str, str], name: str, commands: dict[str, list[str]]) -> None:
    found = build_systems(texts)
    assert [system.name for system in found] == ([name] if name else [])
    assert [system.commands for system in found] == ([commands] if name else [])


def test_dependencies_and_names_come_from_the_manifests() -> None:
    assert one({"pom.xml": POM}).dependencies == ["slf4j-api"]
    assert one({"pom.xml": POM}).project == "acme-io"
    assert one({"package.json": PACKAGE}).dependencies == ["undici"]
    go = "module a\nrequire (\n\texample.org/x v1.2.3\n\texample.org/y v0.1.0 // indirect\n)\n"
    go += "require example.org/z v2.0.0\n"
    assert one({"go.mod": go}).dependencies == ["example.org/x", "example.org/z"]
    python = '[project]\nname = "rows"\ndependencies = ["numpy>=2", "tqdm; python_version > \'3\'"]\n'
    assert one({"pyproject.toml": python}).dependencies == ["numpy", "tqdm"]
    assert [requirement_name(line) for line in ("-r base.txt", "# x", "git+https://a/b", "rich==1")] == [
        "",
        "",
        "",
        "rich",
    ]


def test_all_systems_are_reported_and_of_each_the_one_nearest_to_the_top() -> None:
    found = build_systems(
        {
            "CMakeLists.txt": "project(a)",
            "src/CMakeLists.txt": "project(b)",
            "web/package.json": "{}",
            "Makefile": "all:\n",
        }
    )
    assert [(system.name, system.file) for system in found] == [
        ("CMake", "CMakeLists.txt"),
        ("Make", "Makefile"),
        ("npm", "web/package.json"),
    ]


def test_answers_contain_only_what_the_files_say() -> None:
    facts = {fact.question: fact.answer for fact in build_facts(build_systems({"CMakeLists.txt": CMAKE}))}
    assert facts["How do I build this project?"] == facts["How do I build Imager?"]
    assert facts["How do I build this project?"] == (
        "The project uses CMake (`CMakeLists.txt`).\n\n"
        "Build it:\n\n```bash\ncmake -B build\ncmake --build build\n```\n\n"
        "Install it:\n\n```bash\ncmake --install build\n```\n\nRun the tests:\n\n```bash\nctest --test-dir build\n```"
    )
    assert facts["Which options does `CMakeLists.txt` define?"] == "`CMakeLists.txt` defines 1 option: `WITH_NET`."
    assert "How do I run this project?" not in facts
    assert build_facts([]) == []
    stack = {
        fact.question: fact.answer
        for fact in stack_facts(build_systems({"CMakeLists.txt": CMAKE}), {"c": 1, "cpp": 12}, "MIT", ["src"])
    }
    assert stack["What is the technology stack of this project?"] == (
        "Languages: C++ (12 files), C (1 file).\nBuild: CMake (`CMakeLists.txt`).\nDependencies: ZLIB.\nLicence: MIT."
    )
    assert stack["Which folders contain the sources of this project?"] == "Sources are in 1 folder: `src`."


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0\x01",
        "{" * 50_000,
        "[" * 50_000,
        '{"scripts": [1]}',
        '{"scripts": 3, "name": []}',
        "<a>" * 50_000,
        "a:" * 50_000,
        '"' * 50_000,
        '"\\' * 50_000,
        "\\" * 50_000 + '"',
        "(" * 50_000,
        "a" * 200_000,
        "project(\n",
        "[project\n",
        "AC_INIT([" * 9999,
    ],
    ids=range(16),
)
def test_broken_files_of_a_build_give_nothing_and_take_no_time(text: str) -> None:
    from engines.inputs.code_tree import BUILD_FILES

    build_facts(build_systems(dict.fromkeys(BUILD_FILES, text)))


def test_parts_of_the_readers() -> None:
    assert list(cmake_commands('set(A "b c\\"d" e) # x\nif(X)\nf(g(h) i)')) == [
        ("set", ["A", 'b c\\"d', "e"]),
        ("if", ["X"]),
        ("f", ["g", "h", "i"]),
    ]
    assert make_targets("a b: c\nd::\nX := y\n.PHONY: z\n") == ("a", ["a", "b", "d"])
    assert make_targets("define text\nsee a: b\nendef\n$(error x \\\nfor help see: y)\nall: \\\n  c: \n") == (
        "all",
        ["all"],
    )
    assert make_targets(".DEFAULT_GOAL := d\na:\nd:\n") == ("d", ["a", "d"])
    assert list(xml_texts("<a><b/><c>x</c></d>y<e>z</a>")) == [(("a", "c"), "x"), (("a", "e"), "z")]
