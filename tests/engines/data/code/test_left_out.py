"""What must not be learned: ignored, vendored and generated files, other licences, secrets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from engines.data.code.licenses import is_allowed, license_of, license_of_manifest, license_of_text
from engines.data.code.scan import CodePolicy, looks_generated, scan_code
from engines.data.code.secrets import secrets_in
from engines.inputs.code_tree import CodeRules, code_files
from engines.inputs.ignored import ignore_rules, is_ignored
from tests.engines.small_corpora import write_tree

KEY_LINE = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
SECRETS = {
    "aws_access_key": "AKIA" + "Z7QX4MNTPLW2RS9V",
    "github_token": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "gitlab_token": "glpat-" + "x9Y8z7W6v5U4t3S2r1Q0",
    "slack_token": "xoxb-" + "1234567890-abcdefABCDEF",
    "slack_webhook": "https://hooks.slack.com/services/" + "T0AB1CD2E/B0FG3HI4J/k5L6m7N8o9P0q1R2s3T4u5V6",
    "google_api_key": "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "hugging_face_token": "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
    "openai_key": "sk-proj-" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6",
    "stripe_key": "sk_live_" + "a1B2c3D4e5F6g7H8i9J0k1L2",
    "npm_token": "npm_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "pypi_token": "pypi-AgE" + "IcHlwaS5vcmcCJ" * 5,
    "sendgrid_key": "SG." + "a1B2c3D4e5F6g7H8i9J0k1." + "L2m3N4o5P6q7R8s9T0u1V2w3X4y5Z6a7",
    "json_web_token": "eyJhbGciOiJIUzI1NiJ9."
    + "eyJzdWIiOiIxMjM0NTY3ODkwIn0."
    + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "private_key": f"-----BEGIN RSA PRIVATE KEY-----\n{KEY_LINE}\n-----END RSA PRIVATE KEY-----",
    "password_in_url": "postgres://admin:" + "s3cr3tPa55@db.internal:5432/x",
    "assigned_secret": 'API_KEY = "' + 'q9X2mZ7Lw4Tn8Vb3Kc6Rj1Hd5Gf0Ys"',
}


@pytest.mark.parametrize("rule", SECRETS)
def test_each_kind_of_secret_is_found_in_code(rule: str) -> None:
    found = secrets_in(f'def connect(value="{SECRETS[rule]}"):\n    pass\n')
    assert rule in {name for name, _ in found}


def test_the_lines_of_a_private_key_are_secrets_of_their_own() -> None:
    assert ("private_key", KEY_LINE) in secrets_in(SECRETS["private_key"])


@pytest.mark.parametrize(
    "text",
    [
        "token = tokenizer.encode(text)",
        'password = "changeme-please-123"',
        'api_key = os.environ["SERVICE_API_KEY_2"]',
        "secret: Optional[str] = None",
        "https://example.org:8080/a?token=1",
        "sha256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'",
        "sk-learn and task-oriented names with-many-dashes",
        'url = "redis://:${PASSWORD}@host"',
        "AKIAIO is too short",
    ],
)
def test_ordinary_code_contains_no_secret(text: str) -> None:
    assert secrets_in(text) == []


def test_no_text_makes_the_search_for_secrets_slow() -> None:
    for fragment in (
        "eyJ",
        "a://b:",
        "token=",
        "sk-",
        "-----BEGIN ",
        "xoxb-",
        "SG.a.",
        "https://hooks.slack.com/services/T",
    ):
        secrets_in(fragment * (200_000 // len(fragment)))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("// SPDX-License-Identifier: Apache-2.0 OR MIT\n", "Apache-2.0 OR MIT"),
        (
            "/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) AND MIT */",
            "(GPL-2.0-only WITH Linux-syscall-note) AND MIT",
        ),
        ("# Licensed under the Apache License, Version 2.0 (the", "Apache-2.0"),
        ("MIT License\n\nPermission is hereby granted, free of charge, to any\nperson obtaining a copy", "MIT"),
        ("GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007", "GPL-3.0"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007", "LGPL-3.0"),
        ("Mozilla Public License Version 2.0\n1.12 GNU Lesser General Public License, Version 2.1", "MPL-2.0"),
        ("Redistribution and use in source and binary forms, with or without", "BSD-2-Clause"),
        ("int main(void);", ""),
    ],
)
def test_licences_are_recognized_by_their_words(text: str, name: str) -> None:
    assert license_of_text(text) == name


@pytest.mark.parametrize(
    ("name", "text", "expression"),
    [
        ("package.json", '{"license": "ISC"}', "ISC"),
        ("package.json", '{"license": "SEE LICENSE IN x.md"}', ""),
        ("package.json", '{"license": ["MIT"]}', ""),
        ("Cargo.toml", '[package]\nlicense = "MIT OR Apache-2.0"\n', "MIT OR Apache-2.0"),
        ("pyproject.toml", '[project]\nlicense = {text = "BSD-3-Clause"}\n', "BSD-3-Clause"),
        ("CMakeLists.txt", 'license = "MIT"', ""),
    ],
)
def test_a_manifest_names_the_licence_of_its_package(name: str, text: str, expression: str) -> None:
    assert license_of_manifest(name, text) == expression


def test_the_nearest_licence_file_decides_unless_the_file_names_its_own() -> None:
    folders = {"": "MIT", "a/b": "GPL-3.0", "c": ""}
    assert license_of("a/x.c", "", folders) == "MIT"
    assert license_of("a/b/d/x.c", "", folders) == "GPL-3.0"
    assert license_of("a/b/x.c", "// SPDX-License-Identifier: ISC", folders) == "ISC"
    assert license_of("c/x.c", "", folders) == "unknown"
    assert license_of("x.c", "", {}) == "unknown"


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-or-later", False),
        ("GPL-3.0 OR MIT", True),
        ("GPL-3.0 AND MIT", False),
        ("(GPL-3.0 OR MIT) AND Apache-2.0", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("LGPL-2.1+", True),
        ("((((", False),
        ("(" * 100 + "MIT", False),
        ("", False),
    ],
)
def test_an_expression_is_allowed_when_the_list_satisfies_it(expression: str, allowed: bool) -> None:
    assert is_allowed(expression, ["MIT", "Apache-2.0", "LGPL-2.1-only"]) is allowed


@pytest.mark.parametrize(
    ("pattern", "inside", "is_folder", "ignored"),
    [
        ("*.o", "a/b.o", False, True),
        ("/build", "build", True, True),
        ("/build", "a/build", True, False),
        ("build/", "a/build", True, True),
        ("build/", "a/build", False, False),
        ("a/**/z", "a/z", False, True),
        ("a/**/z", "a/b/c/z", False, True),
        ("a/*", "a/b/c", False, False),
        ("**/gen", "x/y/gen", True, True),
        ("a/**", "a/b/c", False, True),
        ("# a", "# a", False, False),
        ("*.o\n!keep.o", "keep.o", False, False),
        ("\\!x", "!x", False, True),
        ("*a*b*c*d*e*f*g*h*i*j*k*l*m", "abcdefghijklm", False, False),
    ],
)
def test_patterns_of_gitignore(pattern: str, inside: str, is_folder: bool, ignored: bool) -> None:
    assert is_ignored(ignore_rules(pattern, ""), inside, is_folder=is_folder) is ignored


def test_the_walk_leaves_out_what_is_not_the_projects_own_and_counts_it(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "tree",
        {
            "a.py": "a = 1",
            "web/app.min.js": "x",
            "web/app.js": "let a = 1",
            "vendor/x.go": "package x",
            "old/o.c": "int a;",
            "node_modules/m/i.js": "x",
            "cmake-out/CMakeCache.txt": "",
            "cmake-out/t.c": "int a;",
            "api_pb2.py": "x = 1",
            ".gitignore": "old/\n*.tmp.py\n",
            "b.tmp.py": "b = 1",
            "gen/g.go": "package g",
            ".gitattributes": "gen/*.go linguist-generated=true\nweb/app.min.js -linguist-generated\n",
            "LICENSE": "x",
            "CMakeLists.txt": "",
            "d/e/f/Makefile": "all:",
            ".hidden/h.py": "h = 1",
            "notes.txt": "",
            "skip/s.py": "s = 1",
        },
    )
    (tree / "link.py").symlink_to(tree / "a.py")
    dropped: Counter[str] = Counter()
    found = {one.path: one.role for one in code_files(tree, CodeRules(exclude=("skip/*",)), dropped)}
    assert found == {
        ".gitattributes": "rules",
        ".gitignore": "rules",
        "CMakeLists.txt": "build",
        "LICENSE": "license",
        "a.py": "source",
        "web/app.js": "source",
        "web/app.min.js": "source",
    }
    assert dropped == {
        "third_party_folder": 2,
        "ignored_folder": 1,
        "build_folder": 1,
        "generated": 2,
        "ignored": 1,
        "symbolic_link": 1,
        "excluded": 1,
    }
    kept = {one.path for one in code_files(tree, CodeRules(keep_vendored=True, keep_generated=True), Counter())}
    assert {"vendor/x.go", "api_pb2.py", "gen/g.go"} <= kept


@pytest.mark.parametrize(
    ("text", "generated"),
    [
        ("// Code generated by protoc-gen-go. DO NOT EDIT.\npackage a\n", True),
        ("# This file is automatically generated\n", True),
        ('"""Names that are automatically generated by the tool."""\n', False),
        ("var a=1;" * 400, True),
        ("var a = 1;\n" * 400, False),
    ],
)
def test_generated_text_is_known_by_its_first_comment_or_its_long_lines(text: str, generated: bool) -> None:
    assert looks_generated(text) is generated


def test_files_under_other_licences_are_left_out_and_counted(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "tree",
        {
            "a.py": "# SPDX-License-Identifier: MIT\na = 1\n",
            "b.py": "# SPDX-License-Identifier: GPL-3.0-only\nb = 1\n",
            "c.py": "c = 1\n",
            "sub/LICENSE": "Apache License\nVersion 2.0, January 2004",
            "sub/d.py": "d = 1\n",
            "web/package.json": '{"license": "MIT"}',
            "web/e.py": "e = 1\n",
            "own/package.json": '{"license": "MIT"}',
            "own/COPYING": "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007",
            "own/f.py": "f = 1\n",
        },
    )
    scan = scan_code(tree, CodePolicy(licenses=["MIT", "Apache-2.0"], keep_unknown_license=False))
    assert list(scan.files) == ["a.py", "sub/d.py", "web/e.py"]
    assert scan.dropped == {"license_not_allowed": 2, "license_unknown": 1}
    assert scan.licenses == {"MIT": 2, "Apache-2.0": 1}
    assert len(scan_code(tree, CodePolicy()).files) == 6
