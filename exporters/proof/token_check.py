"""Compares the token ids of llama.cpp and of transformers: of texts, of whole conversations, and the ends of answers.

Texts are compared as they are, and with the tokens that both add to every prompt. A conversation is compared as
llama.cpp feeds it to the model, and as the Modelfile's template does.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from engines.chat.rendering import Chat, TemplateError, render
from engines.data.hard_strings import HARD_STRINGS
from engines.llama.process import LlamaProcess
from exporters.prompts.chat_format import modelfile_format
from exporters.proof.parity_data import ParityData, Sample, encode
from recipes.problems import printable


@dataclass(frozen=True)
class TokenCheck:
    """The result of a comparison. Texts are shortened.

    Attributes:
        texts: number of texts compared without added tokens.
        different: texts with other ids.
        literals: plain texts that spell a control token; they do not fail the check.
        normalized: texts that the tokenizer's Unicode normalization changes; they do not fail the check.
        chats: number of conversations.
        prompts: how many of them the Modelfile's template gives too.
        unwritten_begin: the token that llama.cpp puts before a conversation and that the chat template does not write;
            empty without one.
        missing_ends: tokens that end an answer in transformers, but not in llama.cpp.
    """

    texts: int
    different: list[str]
    literals: int
    normalized: int
    chats: int = 0
    prompts: int = 0
    unwritten_begin: str = ""
    missing_ends: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """One sentence about the ids, and one about the ends of answers, if they differ."""
        found = []
        if self.different:
            found.append(
                f"token ids differ from the model's tokenizer in {len(self.different)} of "
                f"{self.texts + self.chats} texts: {'; '.join(self.different[:5])}"
            )
        if self.missing_ends:
            found.append(f"an answer does not end at {', '.join(self.missing_ends[:5])}, which ends it in transformers")
        return found

    def warnings(self) -> list[str]:
        """What a correct file cannot do as transformers does."""
        if not self.unwritten_begin:
            return []
        return [
            f"llama.cpp and Ollama put {printable(self.unwritten_begin, 40)} before a conversation, but the model's "
            "chat template does not: add {{ bos_token }} to the beginning of chat_template.jinja if the model was "
            "trained with it"
        ]


def check_tokens(tokenizer: Any, llama: LlamaProcess, data: ParityData, ends: Iterable[int] = ()) -> TokenCheck:
    """Compare ids on the held-out texts, on hard strings and on conversations of them.

    Two known differences are counted, but do not fail the check. A plain text that spells a control token's name
    (`literals`): llama.cpp merges pieces into any token of that name, but the tokenizer keeps control tokens out of
    ordinary text. A text that the tokenizer's Unicode normalization changes (`normalized`): llama.cpp does not
    normalize.

    Args:
        tokenizer: the model's.
        llama: the file in llama.cpp.
        data: the held-out texts.
        ends: tokens that end an answer in transformers.
    """
    samples = list(data.samples)
    for text in HARD_STRINGS:
        samples += [Sample(text, encode(tokenizer, text, special=flag), flag) for flag in (True, False)]
    names = [name for name in tokenizer.all_special_tokens if name]
    check = _Check(_unicode_forms(tokenizer))
    literals = 0
    for sample in samples:
        ids = llama.tokenize(sample.text, parse_special=sample.special)
        expected = encode(tokenizer, sample.text, special=sample.special)
        if ids != expected and not sample.special and any(name in sample.text for name in names):
            literals += 1
        else:
            check.compare(sample.text, ids, expected, "chat" if sample.special else "plain")
    for text in HARD_STRINGS:
        ids = llama.tokenize(text, parse_special=True, add_special=True)
        check.compare(text, ids, list(tokenizer(text)["input_ids"]), "with added tokens")
    chats = _check_chats(tokenizer, llama, check)
    missing = sorted(set(ends) - set(llama.ends()))
    return TokenCheck(
        len(samples) + len(HARD_STRINGS),
        check.different,
        literals,
        check.normalized,
        chats=chats.count,
        prompts=chats.prompts,
        unwritten_begin=chats.unwritten_begin,
        missing_ends=[printable(str(tokenizer.convert_ids_to_tokens(token)), 40) for token in missing],
    )


@dataclass
class _Check:
    """Collects the differences. `forms`: the Unicode forms that the tokenizer normalizes to."""

    forms: Sequence[UnicodeForm]
    different: list[str] = field(default_factory=list)
    normalized: int = 0

    def compare(self, text: str, ids: Sequence[int], expected: Sequence[int], kind: str) -> None:
        """Note a text whose ids differ."""
        if list(ids) == list(expected):
            return
        if any(unicodedata.normalize(form, text) != text for form in self.forms):
            self.normalized += 1
        else:
            self.different.append(f"{printable(text, 60)!r} ({kind})")


@dataclass
class _Chats:
    """Counts of conversations; see `TokenCheck`."""

    count: int = 0
    prompts: int = 0
    unwritten_begin: str = ""


def _check_chats(tokenizer: Any, llama: LlamaProcess, check: _Check) -> _Chats:
    """Compare conversations with one question each, up to the beginning of the answer."""
    found = _Chats()
    if not getattr(tokenizer, "chat_template", None):
        return found
    talks = [[{"role": "user", "content": text}] for text in HARD_STRINGS]
    try:
        texts = render(tokenizer, [Chat(talk, opened=True) for talk in talks])
        begin, end = _added_texts(tokenizer, llama)
        form = modelfile_format(tokenizer, begin)
    except TemplateError:
        return found
    for talk, text in zip(talks, texts, strict=True):
        expected = encode(tokenizer, text, special=True)
        # llama.cpp's common_chat_templates_apply takes away what its tokenization adds again (common/chat.cpp)
        prompts = [text.removeprefix(begin).removesuffix(end)]
        if form is not None and form.render(talk) == text:
            prompts.append(form.render(talk, begin=begin))
            found.prompts += 1
        for prompt in dict.fromkeys(prompts):
            ids = llama.tokenize(prompt, parse_special=True, add_special=True)
            if begin and not text.startswith(begin):
                found.unwritten_begin = begin
                ids = ids[1:]
            check.compare(text, ids, expected, "conversation")
        found.count += 1
    return found


def _added_texts(tokenizer: Any, llama: LlamaProcess) -> tuple[str, str]:
    """The texts of the tokens that llama.cpp adds before and after a prompt; empty where it adds none."""
    bare = llama.tokenize("a", parse_special=True)
    whole = llama.tokenize("a", parse_special=True, add_special=True)
    before = whole[: -len(bare)] if whole[-len(bare) :] == bare else whole[:1]
    after = whole[len(before) + len(bare) :]
    begin, end = (str(tokenizer.convert_ids_to_tokens(ids[0])) if ids else "" for ids in (before, after))
    return begin, end


UnicodeForm = Literal["NFC", "NFD", "NFKC", "NFKD"]
_UNICODE_FORMS: tuple[UnicodeForm, ...] = get_args(UnicodeForm)


def _unicode_forms(tokenizer: Any) -> list[UnicodeForm]:
    """The Unicode normalization forms that a fast tokenizer applies to text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = json.loads(backend.to_str()).get("normalizer") if backend is not None else None
    parts = (normalizer or {}).get("normalizers", [normalizer])
    return [form for part in parts if part for form in _UNICODE_FORMS if part.get("type") == form]
