"""Files that somebody else wrote: nothing of them is executed, and each is refused with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.importing.config import MAX_BYTES, read_config
from recipes.problems import OperatorError
from tests.cockpit.importing.configurations import LLAMA_FACTORY, imported, outcome

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("c.yaml", "a: 1\nb: [1\nc: 2\n", r"c\.yaml:3"),
        ("c.yaml", "a: 1\nb: !!python/object/apply:os.system ['touch ran']\n", r"c\.yaml:2.*python/object"),
        ("c.yaml", "a: !mine 1\n", r"c\.yaml:1.*!mine"),
        ("c.yaml", "a: 1\n!!python/name:os.system : 1\n", r"c\.yaml:2.*python/name"),
        ("c.yaml", "a: &x [*x]\n", "levels deep"),
        ("c.yaml", BOMB, "aliases counted"),
        ("c.yaml", "- " * 1000, "deep"),
        ("c.yaml", "a: " + "[" * 60 + "]" * 60, "40 levels deep"),
        ("c.yaml", "- a\n- b\n", "no keys"),
        ("c.yaml", "", "no keys"),
        ("c.yaml", "a: 1\n---\nb: 2\n", "single document"),
        ("c.yaml", "? [a]\n: 1\n", "a list or a mapping"),
        ("c.yaml", "a: \x07\n", "special characters"),
        ("c.json", '{"a": 1,\n "b": }', r"c\.json:2"),
        ("c.json", "[" * 100_000, "deep"),
        ("c.py", "import os\nos.system('touch ran')\n", "no arguments"),
        ("c.py", "def (:\n", r"c\.py:1"),
        ("c.py", "x = " + "(" * 3000 + ")" * 3000, "not Python"),
        ("c.py", "SFTConfig(a=" + "-" * 100_000 + "1)", "not Python"),
        ("c.ipynb", json.dumps({"cells": [{"cell_type": "code", "source": "#" * 1_200_000}]}), "too much code"),
        ("c.ipynb", "{", "not a notebook"),
        ("c.ipynb", '{"cells": [1, {"cell_type": "code", "source": {}}]}', "no arguments"),
        ("c.txt", "a: 1\n", r"\.yaml"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_place(
    name: str, text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(OperatorError, match=says):
        read_config(Path(name))
    assert not (tmp_path / "ran").exists()


def test_a_large_file_a_missing_one_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text("a: 1\n" + "#" * MAX_BYTES)
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe\n")
    for name in ("large.yaml", "bytes.yaml", "missing.yaml", "."):
        with pytest.raises(OperatorError):
            read_config(tmp_path / name)


def test_a_key_that_stands_twice_is_said_and_the_last_one_counts_as_in_pyyaml(tmp_path: Path) -> None:
    found = imported(tmp_path, LLAMA_FACTORY + "cutoff_len: 99\n")
    assert found.stages["tuned"]["max_length"] == 99
    says = [one.says for one in found.outcomes if one.key == "cutoff_len"]
    first = LLAMA_FACTORY[: LLAMA_FACTORY.index("cutoff_len")].count("\n") + 1
    assert any(f"lines {first} and" in line for line in says)


def test_merge_keys_and_aliases_give_the_values_that_pyyaml_gives(tmp_path: Path) -> None:
    import yaml

    text = (
        "base: &b {x: 1, y: [2]}\nown:\n  <<: *b\n  y: 3\nboth:\n  <<: [{z: 4}, *b]\n"
        "plain: {on: off, n: 0x10, t: 2024-01-02}\n"
    )
    path = tmp_path / "c.yaml"
    path.write_text(text)
    found = {key: entry.value for key, entry in read_config(path).entries.items()}
    plain = found.pop("plain")
    assert found == {key: value for key, value in yaml.safe_load(text).items() if key != "plain"}
    assert plain == {"on": False, "n": 16, "t": "2024-01-02"}


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    assert imported(tmp_path, LLAMA_FACTORY).stages["tuned"]["learning_rate"] == 1e-4


def test_values_of_a_configuration_stay_on_their_line_in_the_recipe(tmp_path: Path) -> None:
    from cockpit.importing.recipe_text import recipe_text
    from recipes.toml_read import parse

    hostile = 'mine: "x\\nkind = 3\\u001b[2J\\u202e"\n"bad\\nkey": 1\n'
    text = recipe_text(imported(tmp_path, LLAMA_FACTORY + hostile))
    data, _ = parse(text, tmp_path / "recipe.toml")
    assert "kind" not in data
    assert all(character == "\n" or character.isprintable() for character in text)


@pytest.mark.parametrize(
    "path", ['"~no_such_user/x"', "x/" * 3000, '"a\\0b"', '"a\\nb"', "../" * 200 + "etc/passwd", "/dev/zero"]
)
def test_a_strange_path_is_a_path_that_does_not_exist_or_is_only_named(path: str, tmp_path: Path) -> None:
    for key in ("model_name_or_path", "dataset_dir"):
        lines = [line for line in LLAMA_FACTORY.splitlines() if not line.startswith(key)]
        found = imported(tmp_path, "\n".join([*lines, f"{key}: {path}"]) + "\n")
        assert outcome(found, key).status in ("imported", "unneeded")
    axolotl = (
        f"base_model: a/b\nadapter: lora\nchat_template_jinja: {path}\ndatasets: [{{path: {path}, type: alpaca}}]\n"
    )
    assert outcome(imported(tmp_path, axolotl), "chat_template_jinja").line == 3


def test_a_secret_is_in_no_report(tmp_path: Path) -> None:
    from cockpit.importing.recipe_text import recipe_text
    from cockpit.importing.report import report_lines, to_json

    found = imported(tmp_path, LLAMA_FACTORY + "hf_hub_token: hf_abc\nmy_api_key: k-123\n")
    text = recipe_text(found)
    everything = text + "\n".join(report_lines(found)) + str(to_json(found, text))
    assert outcome(found, "my_api_key").status == "unknown"
    assert "hf_abc" not in everything
    assert "k-123" not in everything
