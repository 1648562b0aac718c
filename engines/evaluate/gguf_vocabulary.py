"""The vocabulary of a GGUF file as labels need it, tokenized by llama.cpp: for a file without its model folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engines.labels.vocabulary import Control, Encoded
from engines.llama.gguf_file import GgufFile
from engines.llama.process import LlamaProcess
from engines.llama.vocab_rules import CONTROL, STRIPS_LEFT, STRIPS_RIGHT, adds_begin
from recipes.problems import OperatorError, printable

_BYTE_LEVEL = "gpt2"
"""`tokenizer.ggml.model` of the vocabularies that give a text the same tokens after a control token as at its
beginning."""
_NAMED = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


class GgufVocabulary:
    """A `TokenizerView` over a GGUF file.

    The ends of tokens are not known: each has that of the whole text. A loss does not need them.
    """

    joins = False

    def __init__(self, file: GgufFile, llama: LlamaProcess) -> None:
        """A view.

        Args:
            file: the header of the file.
            llama: the file in llama.cpp.

        Raises:
            OperatorError: its vocabulary joins texts in a way that only the model's own tokenizer has.
        """
        model = str(file.scalar("tokenizer.ggml.model", ""))
        if model != _BYTE_LEVEL:
            raise OperatorError(
                f"{printable(str(file.path), 400)} has a vocabulary of the kind '{printable(model, 40)}', whose texts"
                " llama.cpp and the model's own tokenizer can divide into other tokens",
                "give --tokenizer FOLDER, the folder of the model from which the file was made",
            )
        self._llama = llama
        self.template = str(file.scalar("tokenizer.chat_template", "") or "")
        pieces = llama.pieces(range(llama.vocab_size))
        self.special: Mapping[str, Any] = {
            name: pieces[token][0]
            for name, key in _NAMED.items()
            if isinstance(token := file.scalar(key), int) and 0 <= token < len(pieces)
        }
        self.controls: Mapping[str, Control] = {
            text: Control(text, token, bool(kind & STRIPS_LEFT), bool(kind & STRIPS_RIGHT))
            for token, (text, kind) in enumerate(pieces)
            if kind & CONTROL and text
        }
        longest = sorted(self.controls, key=len, reverse=True)
        self.spelled = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        usual = adds_begin(model, str(file.scalar("tokenizer.ggml.pre", "")))
        begin = self.controls.get(str(self.special.get("bos_token", "")))
        adds = bool(file.scalar("tokenizer.ggml.add_bos_token", usual))
        self.begin: tuple[int, ...] = (begin.id,) if adds and begin is not None else ()

    @property
    def end(self) -> Control | None:
        """The token that ends a document."""
        return self.controls.get(str(self.special.get("eos_token") or ""))

    def encode(self, texts: Sequence[tuple[str, bool]], *, places: bool = True) -> list[Encoded]:
        """Ids of texts without any control token, whatever the texts spell."""
        found = []
        for text, _ in texts:
            ids = self._llama.tokenize(text, parse_special=False)
            found.append(Encoded(ids, [len(text)] * len(ids) if places else []))
        return found
