"""The tokenizer of a folder as an encoder of documents: SentencePiece, or any tokenizer.json of Hugging Face.

In a document every text is ordinary text: names of control tokens in it (`<s>`, `<|im_end|>`) are spelled with other
tokens. The only control token of a shard is the one that ends each document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from engines.data.hard_strings import HARD_STRINGS, ORDINARY
from engines.data.tokenizer_settings import (
    PIECES_FILE,
    SETTINGS,
    WHOLE_FILE,
    end_token,
    no_tokenizer,
    refuse_dropout,
)
from engines.data.words.byte_level import ByteLevel
from engines.data.words.word_arrays import Ids
from engines.data.words.word_ids import Arrays, of_bytes, of_pieces
from engines.files import file_sha256
from engines.json_text import read_object
from recipes.problems import OperatorError, printable

_SHOWN_TOKENS = 8
_MANY_TEXTS = 256
"""Texts for which starting a thread takes less time than a call for each."""


class NoSuchTokenError(OperatorError):
    """The end token that the stage or the tokenizer's settings name is not in the vocabulary."""


class Encoder(Protocol):
    """Encodes documents.

    Attributes:
        file: the name of the file in the tokenizer's folder that decides the ids.
        vocab_size: every id is below it.
        eos_id: the token that ends a document.
        eos_token: its text.
        controls: the texts of the control tokens.
        control_ids: their ids; an ordinary text has none of them.
        unknown_id: the token of a text that the vocabulary cannot spell; None without one.
        reads_space_mark: whether U+2581 in a document is read as a space.
    """

    file: str
    vocab_size: int
    eos_id: int
    eos_token: str
    controls: tuple[str, ...]
    control_ids: frozenset[int]
    unknown_id: int | None
    reads_space_mark: bool

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without added begin or end."""
        ...

    def arrays(self, texts: Sequence[str]) -> list[Ids]:
        """The same ids as arrays, and faster for much text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...

    def vocabulary(self) -> dict[str, int]:
        """The id of each token's text."""
        ...


def load_encoder(folder: Path, eos_token: str | None = None) -> tuple[Encoder, list[str]]:
    """The encoder of a tokenizer's folder, and what the operator should know about it.

    A folder with both files is encoded by SentencePiece if both give the same ids; else by tokenizer.json, which
    transformers reads.

    Args:
        folder: a folder with tokenizer.json or tokenizer.model.
        eos_token: the token that ends a document; by default, the tokenizer's own.

    Raises:
        OperatorError: neither file is there, one of them is damaged, or there is no end token.
    """
    has_pieces, has_whole = (folder / PIECES_FILE).is_file(), (folder / WHOLE_FILE).is_file()
    if not has_pieces and not has_whole:
        raise no_tokenizer(folder)
    if not has_whole:
        return SentencePieceEncoder(folder, eos_token), []
    if not has_pieces:
        return WholeEncoder(folder, eos_token), []
    try:
        pieces = SentencePieceEncoder(folder, eos_token)
    except NoSuchTokenError:  # such as an added token of a chat model, which tokenizer.json alone has
        whole = WholeEncoder(folder, eos_token)
        return whole, [
            f"{folder}: {PIECES_FILE} has no token {printable(whole.eos_token, 60)!r}, which ends a document; the"
            f" tokens are those of {WHOLE_FILE}, which transformers reads"
        ]
    whole = WholeEncoder(folder, eos_token, pieces.eos_token)
    texts = [*ORDINARY, *HARD_STRINGS]
    different = [
        text for text, one, two in zip(texts, pieces.encode(texts), whole.encode(texts), strict=True) if one != two
    ]
    if not different and pieces.eos_id == whole.eos_id:
        return pieces, []
    why = (
        f"{len(different)} of {len(texts)} texts, {printable(different[0], 40)!r} for example, other ids"
        if different
        else f"documents the end token {whole.eos_id} and not {pieces.eos_id}"
    )
    return whole, [
        f"{folder}: {WHOLE_FILE} gives {why} than {PIECES_FILE}; the tokens are those of {WHOLE_FILE}, which"
        " transformers reads"
    ]


class SentencePieceEncoder:
    """tokenizer.model; see `Encoder`."""

    file = PIECES_FILE
    reads_space_mark = True

    def __init__(self, folder: Path, eos_token: str | None = None) -> None:
        """Load the file.

        Raises:
            OperatorError: it cannot be read, or has no end-of-document token.
        """
        from sentencepiece import SentencePieceProcessor

        path = folder / PIECES_FILE
        self._arrays: Arrays | None = None
        try:
            self._processor: Any = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise OperatorError(f"{path} is not a SentencePiece model", printable(str(error), 200)) from error
        self.vocab_size: int = self._processor.vocab_size()
        self.eos_id: int = self._processor.eos_id()
        named = eos_token or end_token(folder)  # transformers reads the settings, not the file's own end piece
        if named is not None:
            self.eos_id = self._processor.piece_to_id(named)
            if self._processor.id_to_piece(self.eos_id) != named:
                raise _no_such_token(path, named, self._controls())
        if self.eos_id < 0:
            raise OperatorError(
                f"{path} has no end-of-sequence piece", "train a tokenizer with one, such as </s>, or set eos_token"
            )
        self.eos_token: str = self._processor.id_to_piece(self.eos_id)
        self.controls = self._controls()
        self.control_ids = frozenset(n for n in range(self.vocab_size) if self._processor.is_control(n))
        self.unknown_id: int | None = self._processor.unk_id() if self._processor.unk_id() >= 0 else None

    def _controls(self) -> tuple[str, ...]:
        piece, control = self._processor.id_to_piece, self._processor.is_control
        return tuple(piece(number) for number in range(self.vocab_size) if control(number))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without added begin or end."""
        if len(texts) >= _MANY_TEXTS:
            return list(self._processor.Encode(list(texts), out_type=int, num_threads=1))
        encode = self._processor.EncodeAsIds  # without the thread that a list would start
        return [encode(text) for text in texts]

    def arrays(self, texts: Sequence[str]) -> list[Ids]:
        """The same ids as arrays, and faster for much text."""
        if self._arrays is None:
            from sentencepiece import sentencepiece_model_pb2

            model = sentencepiece_model_pb2.ModelProto()
            model.ParseFromString(self._processor.serialized_model_proto())
            self._arrays = Arrays(of_pieces(model, self.encode), self.encode, (*ORDINARY, *HARD_STRINGS))
        return self._arrays(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return str(self._processor.decode(list(ids)))

    def vocabulary(self) -> dict[str, int]:
        """The id of each piece."""
        return {self._processor.id_to_piece(number): number for number in range(self.vocab_size)}


class WholeEncoder:
    """tokenizer.json; see `Encoder`."""

    file = WHOLE_FILE
    reads_space_mark = False

    def __init__(self, folder: Path, eos_token: str | None = None, otherwise: str | None = None) -> None:
        """Load the file.

        Args:
            folder: the tokenizer's folder.
            eos_token: the token that ends a document.
            otherwise: the token to use if neither `eos_token` nor the tokenizer's settings name one.

        Raises:
            OperatorError: it cannot be read, encodes at random, or there is no end token.
        """
        from tokenizers import Tokenizer

        path = folder / WHOLE_FILE
        self._arrays: Arrays | None = None
        self._content = read_object(path)  # also reports a file that is missing, too large, or no JSON object
        refuse_dropout(path, self._content)
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:
            raise OperatorError(f"{path} is not a tokenizer: {printable(str(error), 200)}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # the names of special tokens are ordinary text
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        self.controls = tuple(token.content for token in added.values() if token.special)
        self.control_ids = frozenset(number for number, token in added.items() if token.special)
        self.unknown_id: int | None = _unknown_id(self._content, vocabulary)
        named = eos_token or end_token(folder) or otherwise
        if named is None:
            raise OperatorError(
                f"{folder / SETTINGS[0]}: eos_token — missing, so nothing ends a document",
                f"set eos_token in the stage{_choices(self.controls)}",
            )
        if named not in vocabulary:
            raise _no_such_token(path, named, self.controls)
        self.eos_token = named
        self.eos_id: int = vocabulary[named]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without added begin or end."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def arrays(self, texts: Sequence[str]) -> list[Ids]:
        """The same ids as arrays, and faster for much text."""
        if self._arrays is None:
            content, self._content = self._content, {}  # as large as the tokenizer
            words = of_bytes(content, self.encode, ByteLevel(self._tokenizer))
            self._arrays = Arrays(words, self.encode, (*ORDINARY, *HARD_STRINGS))
        return self._arrays(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def vocabulary(self) -> dict[str, int]:
        """The id of each token, added ones included."""
        found: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return found


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two files of a tokenizer are one tokenizer: the same bytes, or tokenizer.json in two spellings, because
    transformers writes the file in its own way."""
    from tokenizers import Tokenizer

    if file_sha256(one) == file_sha256(other):
        return True
    if one.name != WHOLE_FILE or other.name != WHOLE_FILE:
        return False
    spellings = []
    for path in (one, other):
        try:
            read_object(path)
            tokenizer = Tokenizer.from_file(str(path))
        except Exception:  # noqa: BLE001 - the library raises plain Exception
            return False
        tokenizer.no_truncation()
        tokenizer.no_padding()
        spellings.append(tokenizer.to_str())
    return spellings[0] == spellings[1]


def _unknown_id(content: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    """The id that stands for a text which the vocabulary cannot spell."""
    model = content.get("model")
    if not isinstance(model, dict):
        return None
    number = model.get("unk_id")
    if isinstance(number, int):
        return number
    name = model.get("unk_token")
    return vocabulary.get(name) if isinstance(name, str) else None


def _no_such_token(path: Path, token: str, controls: Iterable[str]) -> NoSuchTokenError:
    return NoSuchTokenError(
        f"eos_token — {path} has no such token; got {printable(token, 60)!r}",
        f"name a token of the tokenizer{_choices(controls)}",
    )


def _choices(controls: Iterable[str]) -> str:
    shown = [repr(printable(control, 40)) for control in list(controls)[:_SHOWN_TOKENS]]
    return f", such as {', '.join(shown)}" if shown else ""
