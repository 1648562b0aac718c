"""Any tokenizer of Hugging Face encodes documents, and no text of a document becomes a control token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from engines.data.encoders import load_encoder, same_tokenizer
from engines.data.hard_strings import HARD_STRINGS, ORDINARY
from engines.data.shards import TokenShard
from engines.data.stage import run
from engines.data.text import prepare_text
from engines.events.writers import Warned
from recipes.problems import OperatorError
from tests.engines.small_corpora import fresh, stdlib_text, tokenizer_of, write_tree
from tests.stage_context import TriedContext, make_context

END, TURN_END = "<|endoftext|>", "<|im_end|>"
ADDED = "<|end-of-turn|>"
DOCUMENTS = {"a.txt": f"A text with {END} and {TURN_END} and <think> in it.\n", "b.txt": "größer ▁ 你好 🙂\n"}


def byte_level(folder: Path, **settings: Any) -> Path:
    """A byte-level tokenizer as a chat model has it, whose template begins every text with a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*ORDINARY, *HARD_STRINGS], trainer)
    tokenizer.add_special_tokens([END, TURN_END])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tokenizer.enable_truncation(4)
    return saved(folder, tokenizer, {"eos_token": TURN_END, **settings})


def unigram(folder: Path) -> Path:
    """A tokenizer whose vocabulary has its end token as an ordinary piece, and few characters."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz .\n")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["</s>"])
    return saved(folder, tokenizer, {"eos_token": "</s>"})


def saved(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tokenized(tmp_path: Path, tokenizer: Path, documents: dict[str, str], **fields: Any) -> TriedContext:
    """The context of a finished tokens stage over these documents."""
    source = write_tree(tmp_path / "src", documents)
    prepare_text(str(source), fresh(tmp_path / "text"), val_fraction=0, test_fraction=0)
    stage = {"name": "tokens", "kind": "prepare", "output": "tokens", "data": "text", "tokenizer": "tokenizer"}
    context = make_context(tmp_path, {**stage, **fields}, inputs={"data": tmp_path / "text", "tokenizer": tokenizer})
    run(context)
    return context


def documents_in(folder: Path) -> list[list[int]]:
    """The ids of each document of the train split, with its end."""
    shard = TokenShard(folder, "train", verify=True)
    ends = shard.document_ends.tolist()
    return [shard.tokens[start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]


def test_documents_come_back_from_any_byte_level_tokenizer_and_their_marks_are_text(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "tokenizer")
    context = tokenized(tmp_path, folder, DOCUMENTS)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = {plain.token_to_id(END), plain.token_to_id(TURN_END)}
    for ids, text in zip(documents_in(context.out), DOCUMENTS.values(), strict=True):
        assert ids[-1] == plain.token_to_id(TURN_END)
        assert not ends.intersection(ids[:-1])
        assert plain.decode(ids[:-1], skip_special_tokens=False) == text
    assert TokenShard(context.out, "train").vocab_size == plain.get_vocab_size()
    assert [event for event in context.events() if isinstance(event, Warned)] == []


def test_the_ids_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = byte_level(tmp_path / "tokenizer")
    encoder, _ = load_encoder(folder)
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [*ORDINARY, *HARD_STRINGS, *DOCUMENTS.values()]
    expected = [theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts]
    assert encoder.encode(texts) == expected


def test_the_recipe_chooses_the_token_that_ends_a_document(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "tokenizer")
    context = tokenized(tmp_path, folder, DOCUMENTS, eos_token=END)
    end = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(END)
    assert [ids[-1] for ids in documents_in(context.out)] == [end, end]
    assert TokenShard(context.out, "train").eos_id == end


def test_an_end_token_may_be_spelled_as_an_object_in_either_file(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": END, "lstrip": False}}))
    encoder, _ = load_encoder(folder)
    assert encoder.decode([encoder.eos_id]) == END


def _without_end(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")


def _damaged(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')


def _no_json(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("not JSON")


@pytest.mark.parametrize(
    ("damage", "eos_token", "says"),
    [
        (_without_end, None, "eos_token — missing"),
        (lambda folder: None, "<nothing>", "has no such token; got '<nothing>'"),
        (_damaged, None, "is not a tokenizer"),
        (_no_json, None, "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), None, "neither tokenizer.json nor tokenizer.model"),
    ],
)
def test_a_tokenizer_that_cannot_encode_documents_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], eos_token: str | None, says: str
) -> None:
    folder = byte_level(tmp_path / "tokenizer")
    damage(folder)
    with pytest.raises(OperatorError) as caught:
        load_encoder(folder, eos_token)
    assert says in caught.value.message
    if "eos" in says or "token;" in says:
        assert "'<|endoftext|>', '<|im_end|>'" in caught.value.hint


def test_what_a_tokenizer_does_not_preserve_is_counted_and_said(tmp_path: Path) -> None:
    documents = {"a.txt": "plain words", "b.txt": "Capitals", "c.txt": "a </s> b", "d.txt": "größer"}
    context = tokenized(tmp_path, unigram(tmp_path / "tokenizer"), documents)
    said = " ".join(event.message for event in context.events() if isinstance(event, Warned))
    assert "1 document(s) were left out, because the tokenizer reads a part of their text as a control token" in said
    assert "1 token(s) stand for text that the tokenizer's vocabulary cannot spell" in said
    assert "2 of the first documents are not what their tokens decode to" in said
    assert all(1 not in ids[:-1] and ids[-1] == 1 for ids in documents_in(context.out))
    assert len(documents_in(context.out)) == 3


def test_of_two_files_that_differ_the_one_that_transformers_reads_decides(tmp_path: Path) -> None:
    pieces = tokenizer_of(stdlib_text(tmp_path, "json"), tmp_path / "own", vocab_size=500)
    encoder, said = load_encoder(pieces)
    assert (encoder.file, said) == ("tokenizer.model", [])
    other = byte_level(tmp_path / "other")
    (other / "tokenizer.model").write_bytes((pieces / "tokenizer.model").read_bytes())
    encoder, said = load_encoder(other)
    assert encoder.file == "tokenizer.json"
    assert "the tokens are those of tokenizer.json, which transformers reads" in said[0]


def test_one_tokenizer_in_two_spellings_is_the_same(tmp_path: Path) -> None:
    one, other = (byte_level(tmp_path / name) / "tokenizer.json" for name in ("one", "other"))
    content = json.loads(other.read_text())
    other.write_text(json.dumps({**content, "truncation": None}, indent=1))
    assert one.read_bytes() != other.read_bytes()
    assert same_tokenizer(one, other)
    content["added_tokens"][0]["content"] = "<|end|>"
    other.write_text(json.dumps(content))
    assert not same_tokenizer(one, other)


def test_an_added_token_that_only_one_file_has_can_end_documents(tmp_path: Path) -> None:
    pieces = tokenizer_of(stdlib_text(tmp_path, "json"), tmp_path / "own", vocab_size=500)
    whole = Tokenizer.from_file(str(pieces / "tokenizer.json"))
    whole.add_special_tokens([ADDED])
    whole.save(str(pieces / "tokenizer.json"))
    encoder, said = load_encoder(pieces, ADDED)
    assert (encoder.file, encoder.eos_id) == ("tokenizer.json", whole.token_to_id(ADDED))
    assert f"tokenizer.model has no token '{ADDED}'" in said[0]


def test_the_settings_beside_a_sentencepiece_file_name_the_end_of_a_document(tmp_path: Path) -> None:
    pieces = tokenizer_of(stdlib_text(tmp_path, "json"), tmp_path / "own", vocab_size=500)
    (pieces / "tokenizer.json").unlink()
    assert load_encoder(pieces)[0].eos_token == "</s>"
    (pieces / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<s>"}))
    assert load_encoder(pieces)[0].eos_token == "<s>", "transformers reads it there"
    (pieces / "tokenizer_config.json").write_text(json.dumps({"eos_token": ADDED}))
    with pytest.raises(OperatorError, match="no such token"):
        load_encoder(pieces)


def test_a_tokenizer_that_encodes_at_random_is_refused(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "tokenizer")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.1
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        OperatorError, match=r"model\.dropout — encodes the same text with other tokens each time; got 0\.1"
    ):
        load_encoder(folder)


def test_a_sentencepiece_file_that_transformers_reads_in_another_way_is_said(tmp_path: Path) -> None:
    """transformers gives the first word of a text no blank where no class says so."""
    from sentencepiece import SentencePieceTrainer
    from transformers import AutoTokenizer

    from engines.data.tokenizer_class import pieces_differ

    (tmp_path / "bare").mkdir()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*ORDINARY, *HARD_STRINGS] * 3),
        model_prefix=str(tmp_path / "bare" / "tokenizer"),
        vocab_size=560,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    context = tokenized(tmp_path, tmp_path / "bare", DOCUMENTS)
    said = " ".join(event.message for event in context.events() if isinstance(event, Warned))
    assert "tokenizer.model — transformers (" in said
    assert "a pretrain stage refuses these tokens" in said
    theirs = AutoTokenizer.from_pretrained(context.out / "tokenizer", local_files_only=True)
    wrong = pieces_differ(context.out / "tokenizer", theirs)
    assert wrong is not None
    assert "does not follow it" in wrong.message
