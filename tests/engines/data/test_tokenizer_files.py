from __future__ import annotations

from pathlib import Path

from engines.data.tokenizer_files import NAMES, copy_tokenizer


def folder_with(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_each_file_of_a_tokenizer_comes_from_the_first_folder_that_has_it(tmp_path: Path) -> None:
    adapter = folder_with(tmp_path / "adapter", chat_template__jinja="adapter", tokenizer__json="adapter")
    base = folder_with(tmp_path / "base", tokenizer__json="base", vocab__txt="base", config__json="base")
    out = folder_with(tmp_path / "out")
    assert sorted(copy_tokenizer(out, adapter, base)) == ["chat_template.jinja", "tokenizer.json", "vocab.txt"]
    texts = {path.name: path.read_text() for path in out.iterdir()}
    assert texts == {"chat_template.jinja": "adapter", "tokenizer.json": "adapter", "vocab.txt": "base"}


def test_every_file_of_a_tokenizer_is_copied_byte_for_byte(tmp_path: Path) -> None:
    source, out = folder_with(tmp_path / "source"), folder_with(tmp_path / "out")
    for name in NAMES:
        (source / name).write_bytes(name.encode() + b"\r\n\x00\xff")
    assert sorted(copy_tokenizer(out, source)) == sorted(NAMES)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        name: name.encode() + b"\r\n\x00\xff" for name in NAMES
    }


def test_the_settings_of_two_tokenizers_are_not_mixed(tmp_path: Path) -> None:
    """transformers would take the end token from the base model's special_tokens_map.json."""
    adapter, base, out = (tmp_path / name for name in ("adapter", "base", "out"))
    for folder, names in (
        (adapter, ("tokenizer.json", "tokenizer_config.json")),
        (
            base,
            ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
        ),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    out.mkdir()
    assert sorted(copy_tokenizer(out, adapter, base)) == ["tokenizer.json", "tokenizer_config.json", "vocab.json"]
    assert (out / "tokenizer_config.json").read_text() == "adapter"
