"""The model card beside files: what it says, and that texts from elsewhere cannot write Markdown, HTML or YAML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from engines.files import file_sha256
from exporters.hf_model.model_card import ModelCard, read_card
from exporters.stages.card import code
from tests.exporters.exporting import export, merge
from tests.exporters.small_models import copy_folder

HOSTILE = 'evil"`<img src=x onerror=y>`\n---\n| [a](b) @all'


def front(text: str) -> dict[str, object]:
    _, block, _ = text.split("---\n", 2)
    value: dict[str, object] = yaml.safe_load(block)
    return value


@pytest.fixture
def licensed(base: Path, tmp_path: Path) -> Path:
    folder = copy_folder(base, tmp_path / "Smol-Instruct")
    (folder / "README.md").write_text(
        "---\nlicense: 'apache-2.0'\nlicense_link: https://example.org/LICENSE\nbase_model:\n- org/smol\n---\n# Smol\n"
    )
    (folder / "LICENSE").write_text("Apache License, Version 2.0\n")
    return folder


def test_an_exports_card_has_base_licence_figures_and_hashes(licensed: Path, tmp_path: Path) -> None:
    ctx, _ = export(tmp_path, licensed, "F16", "Q8_0", parity_positions=64)
    text = (ctx.out / "README.md").read_text()
    keys = front(text)
    assert (keys["license"], keys["base_model"], keys["base_model_relation"]) == (
        "apache-2.0",
        ["org/smol"],
        "quantized",
    )
    for name in ("run-F16.gguf", "run-Q8_0.gguf"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert file_sha256(ctx.out / name) in row
        assert re.search(r"KiB \(\S+ kB\)|MiB \(\S+ MB\)", row), row
        assert "n/a" not in row
    assert (ctx.out / "LICENSE").read_text() == "Apache License, Version 2.0\n"


def test_a_merged_model_carries_its_bases_licence_to_its_own_export(
    licensed: Path, adapter: Path, tmp_path: Path
) -> None:
    ctx, _ = merge(tmp_path, licensed, adapter, parity_positions=0)
    assert read_card(ctx.out).license == "apache-2.0"
    assert (ctx.out / "LICENSE").is_file()
    card = (ctx.out / "README.md").read_text()
    assert "- base model: `Smol-Instruct`" in card
    assert "- adapter: `" in card
    (tmp_path / "next").mkdir()
    exported, _ = export(tmp_path / "next", ctx.out, "F16", parity_positions=0)
    assert front((exported.out / "README.md").read_text())["license"] == "apache-2.0"


def test_texts_from_elsewhere_stay_texts(base: Path, tmp_path: Path) -> None:
    folder = copy_folder(base, tmp_path / "evil`<b>| x")
    (folder / "README.md").write_text(f'---\nlicense: {HOSTILE.splitlines()[0]}\nlicense_name: "a: [b"\n---\n')
    ctx, _ = export(tmp_path, folder, "F16", parity_positions=0)
    text = (ctx.out / "README.md").read_text()
    assert front(text)["license"] == HOSTILE.splitlines()[0]
    assert "``evil`<b>| x``" in text
    outside = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text.split("---\n", 2)[2])
    assert "<" not in outside
    assert "evil" not in outside


def test_a_code_span_is_longer_than_any_backticks_in_its_text() -> None:
    assert code("a") == "`a`"
    assert code("a`b``c") == "```a`b``c```"
    assert code("`a`") == "`` `a` ``"
    assert "\n" not in code(HOSTILE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no front matter",
        "---\nlicense: mit\n",
        "---\n" + "a: b\n" * 5000,
        "--- \n- x\n---\n",
        "---\nlicense:\n---\n",
    ],
)
def test_a_card_without_a_complete_front_matter_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert read_card(tmp_path) == ModelCard()
