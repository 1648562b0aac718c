"""The ids of words, joined, are the ids of the text; a tokenizer for which that is not proven encodes it as a whole."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from engines.data.encoders import SentencePieceEncoder, WholeEncoder
from engines.data.hard_strings import HARD_STRINGS, ORDINARY
from engines.data.words import word_arrays, word_ids
from engines.data.words.byte_level import ByteLevel
from engines.data.words.stand_ins import StandIns
from engines.data.words.word_arrays import WordArrays
from engines.data.words.word_ids import LONGEST_WORD, Arrays, WordIds, of_bytes, of_pieces
from engines.tokenizer.byte_level import train_byte_level, write_byte_level
from engines.tokenizer.train import TrainingText
from tests.engines.small_corpora import fresh, stdlib_text, tokenizer_of, write_tree

pytestmark = pytest.mark.torch
Encoder = SentencePieceEncoder | WholeEncoder
GPT2 = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
DIGITS = [pre_tokenizers.Digits(individual_digits=True), *GPT2]


def sentencepiece(text: Path, out: Path) -> Encoder:
    return SentencePieceEncoder(tokenizer_of(text, out, vocab_size=1500))


def bytes_of(split_digits: bool) -> Callable[[Path, Path], Encoder]:
    def train(text: Path, out: Path) -> Encoder:
        content = train_byte_level(
            TrainingText(text, max_bytes=None, seed=0), vocab_size=1500, split_digits=split_digits
        )
        write_byte_level(content, fresh(out))
        return WholeEncoder(out)

    return train


def by(parts: list[Any], *, all_bytes: bool = True) -> Callable[[Path, Path], Encoder]:
    """A tokenizer with another pre-tokenizer; without `all_bytes`, bytes that the text does not have are left out."""

    def train(text: Path, out: Path) -> Encoder:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.normalizer = normalizers.NFC()
        alphabet = pre_tokenizers.ByteLevel.alphabet() if all_bytes else []
        trainer = trainers.BpeTrainer(
            vocab_size=1500, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
        )
        tokenizer.train_from_iterator(list(TrainingText(text, max_bytes=None, seed=0).chunks()), trainer)
        fresh(out)
        tokenizer.save(str(out / "tokenizer.json"))
        (out / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
        return WholeEncoder(out)

    return train


KNOWN = {
    "sentencepiece": sentencepiece,
    "qwen2": bytes_of(split_digits=True),
    "dbrx": bytes_of(split_digits=False),
    "gpt-2": by(GPT2),
    "starcoder": by(DIGITS),
    "starcoder of few bytes": by(DIGITS, all_bytes=False),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stdlib_text(tmp_path_factory.mktemp("text"), "json", "email")


@pytest.fixture(scope="module", params=KNOWN)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text: Path) -> Encoder:
    made = KNOWN[request.param](text, tmp_path_factory.mktemp("tokenizer") / "out")
    _begun(made)
    assert made._arrays is not None
    assert made._arrays._words is not None, "its form is one of the known ones"
    return made


OTHERS = ["é", "▁", "\u0301", "\n\n", "\x1c", "\x85", "\xa0", "日"]
ALPHABET = [*" \n\t\r\v\f'sStTrReElLmMdDvV.,/_-(09aZ", *OTHERS]
odd = st.lists(
    st.sampled_from([*ALPHABET, "</s>", "<s>", "'re", "\r\n", "\x00", "\u017f", "\u2028", "\u0663"]), max_size=40
)


@settings(max_examples=400)
@given(text=odd.map("".join) | st.text(max_size=80))
def test_any_text_has_the_tokenizers_ids(encoder: Encoder, text: str) -> None:
    assert encoder.arrays([text])[0].tolist() == encoder.encode([text])[0]


def test_whole_documents_have_the_tokenizers_ids_also_after_words_were_forgotten(
    encoder: Encoder, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [json.loads(line)["text"] for line in (text / "train.jsonl").read_text().splitlines()]
    documents += ["x" * 5000 + " " + "ab" * 300, "é".join(documents[:3]), *HARD_STRINGS]
    wanted = encoder.encode(documents)
    monkeypatch.setattr(word_ids, "MOST_WORDS", 500)
    monkeypatch.setattr(word_arrays, "MOST_WORDS", 500)
    monkeypatch.setattr(word_arrays, "_BLOCK_WORDS", 2000)
    assert [ids.tolist() for ids in encoder.arrays(documents)] == wanted
    assert encoder._arrays is not None
    assert encoder._arrays._words is not None
    assert max(map(len, encoder._arrays._words._known)) <= LONGEST_WORD


def test_words_that_meet_in_one_slot_keep_their_own_ids(
    encoder: Encoder, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [json.loads(line)["text"] for line in (text / "train.jsonl").read_text().splitlines()][:5]
    monkeypatch.setattr(word_arrays, "_slots", lambda keys: (keys[0] % np.uint64(5)).astype(np.int64))
    encode = WordIds(re.compile(r"(?!)"), encoder.encode, unsure=re.compile(""), word_arrays=_word_arrays_of(encoder))
    for _ in range(2):  # the second time all are known
        assert [ids.tolist() for ids in encode.encode_all(documents)] == encoder.encode(documents)


def _word_arrays_of(encoder: Encoder) -> WordArrays:
    assert encoder._arrays is not None
    assert encoder._arrays._words is not None
    found = encoder._arrays._words._arrays
    assert found is not None, "every known form has one"
    return WordArrays(found._words, found._encode_words)


@pytest.mark.parametrize("form", word_ids._PATTERNS)
def test_words_in_arrays_are_those_of_the_pattern(form: str) -> None:
    pattern, choice = re.compile(word_ids._of_ascii(word_ids._PATTERNS[form])), random.Random(2)
    letters = [one for one in ALPHABET if one.isascii() and one != "\x1c"] + ["\x00", "`", "@", "  ", "\n\n"]
    for _ in range(1500):
        texts = ["".join(choice.choice(letters) for _ in range(choice.randrange(25))) for _ in range(4)]
        data = "".join(texts)
        firsts = np.array([sum(map(len, texts[:number])) for number in range(len(texts))])
        begins = word_ids._CUTS[form](np.frombuffer(data.encode(), dtype=np.uint8), firsts)
        starts = [*np.flatnonzero(begins).tolist(), len(data)]
        found = [data[start:end] for start, end in pairwise(starts)]
        assert found == [word for text in texts for word in pattern.findall(text)], texts


def test_random_lines_of_blanks_digits_and_marks_have_the_tokenizers_ids(encoder: Encoder) -> None:
    choice = random.Random(1)
    texts = ["".join(choice.choice(ALPHABET) for _ in range(choice.randrange(60))) for _ in range(3000)]
    assert [ids.tolist() for ids in encoder.arrays(texts)] == encoder.encode(texts)


def test_characters_of_all_scripts_have_the_tokenizers_ids(encoder: Encoder) -> None:
    choice = random.Random(3)
    begins = [0x80, 0x250, 0x370, 0x5D0, 0x900, 0x1780, 0x2000, 0x2460, 0x3000, 0x4E00, 0xAC00, 0xFB00, 0xFF00, 0x1D400]

    def character() -> str:
        return chr(choice.choice(begins) + choice.randrange(200)) if choice.random() < 0.5 else choice.choice(ALPHABET)

    texts = ["".join(character() for _ in range(choice.randrange(40))) for _ in range(1500)]
    arrays = _word_arrays_of(encoder)
    assert sum(map(arrays.takes, texts)) > 100, "not only those that are encoded as a whole"
    assert [ids.tolist() for ids in encoder.arrays(texts)] == encoder.encode(texts)


@pytest.mark.parametrize(("form", "taken"), [("qwen2", False), ("gpt-2", True)])
def test_a_letter_that_a_pattern_reads_as_an_ascii_letter_has_no_stand_in(
    tmp_path: Path, text: Path, form: str, taken: bool
) -> None:
    made = KNOWN[form](text, tmp_path / "out")
    assert isinstance(made, WholeEncoder)
    stand_ins = StandIns(ByteLevel(made._tokenizer))
    assert stand_ins.know("it'\u017fa") == taken, "Qwen2's pattern ignores case, and this is a small s"
    assert stand_ins.know("é日Ж\u0663½ \u3000\u2028…€")
    assert stand_ins.read(["é日Ж\u0663½ \u3000\u2028…€a"]).tobytes() == b"xxx00 \t\t!!a"
    assert stand_ins.know("e\u0301") == (form == "qwen2"), "NFC makes one character of it, where it is asked for"


def test_a_language_without_blanks_is_remembered_by_parts_of_its_words(tmp_path: Path, text: Path) -> None:
    made = by(GPT2)(text, tmp_path / "out")
    assert isinstance(made, WholeEncoder)
    arrays, asked = _word_arrays_of(_begun(made)), list[bytes]()
    encode = arrays._encode_words
    arrays._encode_words = lambda words: asked.extend(words) or encode(words)
    ids = arrays.encode(["世界和平世界和平 peace", "平和界世"])
    assert [one.tolist() for one in ids] == made.encode(["世界和平世界和平 peace", "平和界世"])
    assert sorted(asked) == sorted(one.encode() for one in ("世", "界", "和", "平", " peace"))


def test_pieces_of_several_characters_beyond_ascii_are_not_divided(tmp_path: Path) -> None:
    choice = random.Random(4)
    letters = "世界和平内核Жизнь\uff0c。"
    known = ["".join(choice.choice(letters) for _ in range(choice.randrange(1, 5))) for _ in range(40)]
    texts = ["".join(choice.choice([*known, " ", "a", "b1"]) for _ in range(60)) + "\n" for _ in range(300)]
    lines = "".join(json.dumps({"path": f"{n}", "text": text}) + "\n" for n, text in enumerate(texts))
    folder = write_tree(tmp_path / "text", {"train.jsonl": lines, "val.jsonl": "", "test.jsonl": ""})
    made = SentencePieceEncoder(tokenizer_of(folder, tmp_path / "out", vocab_size=600))
    assert sum(len(piece) > 2 and not piece.isascii() for piece in made.vocabulary()) > 50
    assert [ids.tolist() for ids in made.arrays(texts)] == made.encode(texts)
    assert made._arrays is not None
    assert made._arrays._words is not None


def _begun(made: Encoder) -> Encoder:
    made.arrays(["a"])
    return made


def _never(_texts: Any) -> list[list[int]]:
    raise AssertionError


def test_a_form_that_is_not_known_is_encoded_as_a_whole(tmp_path: Path, text: Path) -> None:
    forms = {
        "prefix": by([pre_tokenizers.ByteLevel(add_prefix_space=True)]),
        "blanks": by([pre_tokenizers.Whitespace(), *GPT2]),
    }
    for name, train in forms.items():
        made = train(text, tmp_path / name)
        assert isinstance(made, WholeEncoder)
        assert _of_bytes(made) is None, name
    added = by(GPT2)(text, tmp_path / "added")
    assert isinstance(added, WholeEncoder)
    assert _of_bytes(added) is not None
    assert _of_bytes(added, dropout=0.1) is None
    assert _of_bytes(added, type="Unigram") is None
    added._tokenizer.add_tokens([AddedToken("<think>", special=False)])
    assert _of_bytes(added) is None
    added._tokenizer.save(str(tmp_path / "added" / "tokenizer.json"))
    thinks = WholeEncoder(tmp_path / "added")
    assert thinks.arrays(["<think> a"])[0].tolist() == thinks.encode(["<think> a"])[0]


def _of_bytes(made: WholeEncoder, **changed: Any) -> WordIds | None:
    content = json.loads(made._tokenizer.to_str())
    content["model"].update(changed)
    return of_bytes(content, _never, ByteLevel(made._tokenizer))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("normalizer_spec", "add_dummy_prefix", True),
        ("normalizer_spec", "remove_extra_whitespaces", True),
        ("normalizer_spec", "precompiled_charsmap", b"x"),
        ("trainer_spec", "treat_whitespace_as_suffix", True),
        ("trainer_spec", "byte_fallback", False),
        ("trainer_spec", "model_type", 1),
        ("piece", "type", 4),
        ("piece", "piece", "a▁b"),
    ],
)
def test_pieces_that_join_over_blanks_or_change_text_are_not_divided(
    tmp_path: Path, text: Path, part: str, field: str, value: Any
) -> None:
    from sentencepiece import sentencepiece_model_pb2

    folder = tokenizer_of(text, tmp_path / "t", vocab_size=700)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    assert of_pieces(model, _never) is not None
    setattr(model.pieces[-1] if part == "piece" else getattr(model, part), field, value)
    assert of_pieces(model, _never) is None


def test_words_that_give_other_ids_than_the_tokenizer_are_not_used() -> None:
    def letters(texts: Any) -> list[list[int]]:
        return [[len(text)] for text in texts]

    words = WordIds(re.compile("."), letters, unsure=re.compile(r"(?!)"))
    assert Arrays(words, letters, ORDINARY)(["abc"])[0].tolist() == [3]
