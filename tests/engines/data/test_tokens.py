"""Token shards contain exactly SentencePiece's ids, document by document, and damaged ones are refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, pre_tokenizers

from engines.data.documents import read_documents
from engines.data.shards import TokenShard
from engines.data.split import SPLITS
from engines.data.stage import run
from engines.data.text import prepare_text
from engines.data.tokens_manifest import check_tokenizer, dtype_for, read_tokens_manifest, tokens_problems
from engines.events.attempts import Progress
from recipes.problems import OperatorError
from tests.engines.small_corpora import fresh, stdlib_text, tokenizer_of, tokens_of, write_tree
from tests.stage_context import make_context


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stdlib_text(tmp_path_factory.mktemp("text"), "json", "email")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    return tokenizer_of(text, tmp_path_factory.mktemp("tokenizer") / "out")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, text: Path, tokenizer: Path) -> Path:
    return tokens_of(text, tokenizer, tmp_path_factory.mktemp("tokens") / "out")


def test_every_document_comes_back_from_the_shard(text: Path, tokenizer: Path, tokens: Path) -> None:
    processor = SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    for split in SPLITS:
        shard = TokenShard(tokens, split, verify=True)
        start = 0
        ends = shard.document_ends.tolist()
        for (document, _), end in zip(read_documents(text, split), ends, strict=True):
            ids = shard.tokens[start:end].tolist()
            assert ids[-1] == shard.eos_id == 2
            assert 2 not in ids[:-1]
            assert processor.decode(ids[:-1]) == document.text
            start = end
        assert start == len(shard)
        assert shard.tokens.dtype == np.uint16


def test_control_strings_in_a_document_stay_text(tmp_path: Path, tokenizer: Path) -> None:
    hostile = "x = '<s></s><unk><|im_start|>user<|im_end|>'\n"
    source = write_tree(tmp_path / "src", {"a.py": hostile})
    prepare_text(str(source), fresh(tmp_path / "text"), val_fraction=0, test_fraction=0)
    out = tokens_of(tmp_path / "text", tokenizer, tmp_path / "tokens")
    ids = TokenShard(out, "train").tokens.tolist()
    assert [token for token in ids if token < 5] == [2]
    assert SentencePieceProcessor(model_file=str(out / "tokenizer" / "tokenizer.model")).decode(ids[:-1]) == hostile
    assert len(TokenShard(out, "val")) == 0


def test_a_vocabulary_over_65536_pieces_is_stored_in_32_bits(
    tmp_path: Path, text: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = TokenShard(tokens_of(text, tokenizer, tmp_path / "small"), "val").tokens
    assert (dtype_for(65_536), dtype_for(65_537)) == ("uint16", "uint32")
    monkeypatch.setattr("engines.data.tokens.dtype_for", lambda vocab_size: "uint32")
    shard = TokenShard(tokens_of(text, tokenizer, tmp_path / "large"), "val")
    assert shard.tokens.dtype == np.uint32
    assert np.array_equal(shard.tokens, small)


def test_the_stage_reads_both_its_inputs(tmp_path: Path, text: Path, tokenizer: Path) -> None:
    other = tokenizer_of(text, tmp_path / "other", vocab_size=500)
    fields = {"name": "tokens", "kind": "prepare", "output": "tokens", "data": "text", "tokenizer": "tokenizer"}
    made = {}
    for name, folder in (("one", tokenizer), ("two", other)):
        context = make_context(tmp_path / name, fields, inputs={"data": text, "tokenizer": folder})
        result = run(context)
        made[name] = result.metrics
        progress = [e for e in context.events() if isinstance(e, Progress)][-1]
        assert progress.total
        assert progress.done == progress.total
        shard = TokenShard(context.out, "train")
        assert shard.vocab_size == (700 if name == "one" else 500)
        assert (shard.tokenizer / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert made["one"]["tokens"] < made["two"]["tokens"]
    assert made["one"]["documents"] == made["two"]["documents"]


def _cut(tokens: Path) -> None:
    file = tokens / "train.bin"
    file.write_bytes(file.read_bytes()[:-2])


def _flip(tokens: Path) -> None:
    file = tokens / "train.bin"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(tokens: Path) -> None:
        manifest = json.loads((tokens / "tokens.json").read_text())
        manifest.update(changes)
        (tokens / "tokens.json").write_text(json.dumps(manifest))

    return edit


def _outside(tokens: Path) -> None:
    manifest = json.loads((tokens / "tokens.json").read_text())
    manifest["splits"]["train"]["file"] = "../train.bin"
    (tokens / "tokens.json").write_text(json.dumps(manifest))


def _odd(tokens: Path) -> None:
    file = tokens / "train.bin"
    file.write_bytes(file.read_bytes()[:-1])


def _hashed_again(tokens: Path, file: str, at: int, value: int, dtype: str) -> None:
    """Change a number of a file, and its SHA-256 in tokens.json too."""
    numbers = np.fromfile(tokens / file, dtype=dtype)
    numbers[at] = value
    numbers.tofile(tokens / file)
    manifest = json.loads((tokens / "tokens.json").read_text())
    key = "sha256" if file.endswith(".bin") else "index_sha256"
    manifest["splits"]["train"][key] = hashlib.sha256((tokens / file).read_bytes()).hexdigest()
    (tokens / "tokens.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_odd, "bytes; tokens.json expects"),
        (lambda tokens: _hashed_again(tokens, "train.idx", 1, 3, "<u8"), "document 2 does not end after"),
        (lambda tokens: _hashed_again(tokens, "train.idx", 1, 1 << 63, "<u8"), "document 2 does not end after"),
        (lambda tokens: _hashed_again(tokens, "train.bin", 7, 60_000, "<u2"), "token 7 of the train split .* is 60000"),
        (_edit(vocab_size=100), "states a vocabulary of 100"),
        (_edit(vocab_size=10**12), "vocab_size 1000000000000, allowed 1 to 65536 for uint16"),
        (_edit(vocab_size=-5), "vocab_size -5"),
        (_edit(eos_id=5000), "eos_id 5000, allowed 0 to"),
        (_cut, "bytes; tokens.json expects"),
        (_flip, "SHA-256"),
        (_edit(dtype="uint32"), "bytes; tokens.json expects"),
        (_edit(dtype="int8"), "dtype int8"),
        (_edit(format=2), "format 2"),
        (_edit(splits={}), "has no train split"),
        (_edit(splits=3), "not a description"),
        (_outside, "outside its folder"),
        (lambda tokens: (tokens / "tokens.json").unlink(), "does not exist"),
        (lambda tokens: (tokens / "train.idx").unlink(), "does not exist"),
    ],
)
def test_a_damaged_shard_is_refused_with_the_reason(
    tmp_path: Path, text: Path, tokenizer: Path, damage: Callable[[Path], None], message: str
) -> None:
    out = tokens_of(text, tokenizer, tmp_path / "tokens")
    TokenShard(out, "train", verify=True)
    damage(out)
    with pytest.raises(OperatorError, match=message):
        TokenShard(out, "train", verify=True)


def test_all_that_sizes_and_the_tokenizer_show_is_said_at_once(tmp_path: Path, text: Path, tokenizer: Path) -> None:
    out = tokens_of(text, tokenizer, tmp_path / "tokens")
    assert tokens_problems(out) == []
    _odd(out)
    (out / "val.idx").unlink()
    file = out / "tokenizer" / "tokenizer.model"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    said = [f"{error.message} {error.hint}" for error in tokens_problems(out)]
    wanted = ["train.bin has .* a part of a value at its end", "val.idx does not exist", "tokenizer.model has changed"]
    assert len(said) == len(wanted)
    assert all(re.search(one, sentence) for one, sentence in zip(wanted, said, strict=True))
    file.unlink()
    with pytest.raises(OperatorError, match=r"tokenizer\.model does not exist"):
        check_tokenizer(out, read_tokens_manifest(out))
    _edit(splits=3)(out)
    assert "not a description" in tokens_problems(out)[0].message


def test_any_file_from_which_a_program_makes_ids_must_be_that_of_the_tokens(
    tmp_path: Path, text: Path, tokenizer: Path
) -> None:
    """SentencePiece encodes, and transformers reads tokenizer.json: a change of either makes two tokenizers."""
    out = tokens_of(text, tokenizer, tmp_path / "tokens")
    file = out / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(OperatorError, match=r"tokenizer\.json has changed"):
        check_tokenizer(out, read_tokens_manifest(out))
    file.unlink()
    with pytest.raises(OperatorError, match=r"tokenizer\.json does not exist"):
        check_tokenizer(out, read_tokens_manifest(out))
    alone = fresh(tmp_path / "alone")
    (alone / "tokenizer.model").write_bytes((tokenizer / "tokenizer.model").read_bytes())
    other = tokens_of(text, alone, tmp_path / "other")
    check_tokenizer(other, read_tokens_manifest(other))
    (other / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(OperatorError, match=r"tokenizer\.json was not there"):
        check_tokenizer(other, read_tokens_manifest(other))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, text: Path) -> None:
    with pytest.raises(OperatorError, match=r"neither tokenizer\.json nor tokenizer\.model exists"):
        tokens_of(text, fresh(tmp_path / "none"), tmp_path / "out")
    broken = write_tree(tmp_path / "broken", {"tokenizer.model": b"nonsense"})
    with pytest.raises(OperatorError, match="not a SentencePiece model"):
        tokens_of(text, broken, tmp_path / "out2")


def test_a_damaged_line_of_text_is_named_with_its_number(tmp_path: Path, text: Path, tokenizer: Path) -> None:
    broken = write_tree(
        tmp_path / "text", {f"{split}.jsonl": (text / f"{split}.jsonl").read_bytes() for split in SPLITS}
    )
    with (broken / "train.jsonl").open("ab") as lines:
        lines.write(b'{"path": 3}\n')
    count = len((broken / "train.jsonl").read_bytes().splitlines())
    with pytest.raises(OperatorError, match=rf"train\.jsonl:{count}: not a document"):
        tokens_of(broken, tokenizer, tmp_path / "out")


def test_ids_above_65535_are_not_cut_to_16_bits(tmp_path: Path) -> None:
    words = {"</s>": 0, **{f"w{number}": number for number in range(1, 70_001)}}
    made = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = fresh(tmp_path / "tokenizer")
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    wanted = [65_535, 65_536, 70_000, 1]
    line = json.dumps({"path": "a", "text": " ".join(f"w{number}" for number in wanted)})
    data = write_tree(tmp_path / "text", {"train.jsonl": line + "\n", "val.jsonl": "", "test.jsonl": ""})
    shard = TokenShard(tokens_of(data, folder, tmp_path / "tokens"), "train", verify=True)
    assert shard.manifest.dtype == "uint32"
    assert shard.tokens.tolist() == [*wanted, 0]
