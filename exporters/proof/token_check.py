"""Compares the token ids of llama.cpp and of transformers: of texts, of whole conversations, and the ends of answers.

Texts are compared as they are, and with the tokens that both add to every prompt. A conversation is compared as
llama.cpp feeds it to the model, and as the Modelfile's template does.
"""

from __future__ import annotations

import json
import re
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

UnicodeForm = Literal["NFC", "NFD", "NFKC", "NFKD"]
_UNICODE_FORMS: tuple[UnicodeForm, ...] = get_args(UnicodeForm)
_ASCII_BLANKS = " \t\n\v\f\r"
_FAR_BLANK = "[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
"""Unicode's white space outside ASCII."""
_LETTERS_AND_MARKS = r"\p{Lo}\p{M}]"
"""End of a class that takes marks for letters. llama.cpp has no such class, and splits words at the marks."""


@dataclass(frozen=True)
class TokenCheck:
    """The result of a comparison. Texts are shortened.

    Attributes:
        texts: number of texts compared without added tokens.
        different: texts with other ids.
        literals: plain texts that spell a control token; they do not fail the check.
        normalized: texts that the tokenizer's Unicode normalization changes; they do not fail the check.
        marked: texts that llama.cpp's form of the tokenizer's pattern splits at combining marks; likewise.
        spaced: texts in which llama.cpp puts a space that transformers does not; they do not fail the check.
        chats: number of conversations.
        prompts: how many of them the Modelfile's template gives too.
        blanks: texts with a blank outside ASCII after a control token that takes the blanks after it: llama.cpp leaves
            out ASCII's only; they do not fail the check.
        unwritten_begin: the token that llama.cpp puts before a conversation and that the chat template does not write;
            empty without one.
        missing_ends: tokens that end an answer in transformers, but not in llama.cpp.
        further_ends: text tokens that end an answer in llama.cpp, for their names, and not in transformers; they do not
            fail the check.
    """

    texts: int
    different: list[str]
    literals: int
    normalized: int
    marked: int = 0
    spaced: int = 0
    blanks: int = 0
    chats: int = 0
    prompts: int = 0
    unwritten_begin: str = ""
    missing_ends: list[str] = field(default_factory=list)
    further_ends: list[str] = field(default_factory=list)

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
        found = []
        if self.spaced:
            found.append(
                f"llama.cpp puts a space before every text and after every control token, but transformers does not: "
                f"{self.spaced} of {self.texts + self.chats} texts and conversations have one more space in llama.cpp"
            )
        if self.blanks:
            found.append(
                f"llama.cpp leaves out only ASCII blanks after a control token, but transformers all: the ids of "
                f"{self.blanks} of {self.texts + self.chats} texts and conversations differ in such blanks"
            )
        if self.further_ends:
            found.append(
                f"llama.cpp takes {', '.join(self.further_ends[:5])} for the end of an answer, whatever a file says, "
                "and for the model it is ordinary text: an answer with it ends early"
            )
        if not self.unwritten_begin:
            return found
        return [
            *found,
            f"llama.cpp and Ollama put {printable(self.unwritten_begin, 40)} before a conversation, but the model's "
            "chat template does not: add {{ bos_token }} to the beginning of chat_template.jinja if the model was "
            "trained with it",
        ]


def check_tokens(tokenizer: Any, llama: LlamaProcess, data: ParityData, ends: Iterable[int] = ()) -> TokenCheck:
    """Compare ids on the held-out texts, on hard strings and on conversations of them.

    Five known differences are counted, but do not fail the check. A plain text that spells a control token's name
    (`literals`): llama.cpp merges pieces into any token of that name, but the tokenizer keeps control tokens out of
    ordinary text; and llama.cpp makes control tokens of all whose names end an answer somewhere, such as Gemma's
    `</s>` of HTML. A text that the tokenizer's Unicode normalization changes (`normalized`): llama.cpp does not
    normalize. A text where llama.cpp puts a space that belongs to SentencePiece's dummy prefix (`spaced`): transformers
    puts it only before a text that does not begin with one, and often not after a control token. The ids are those of
    the text with these spaces. A word with combining marks (`marked`), where the tokenizer's pattern takes marks for
    letters. A blank outside ASCII after a control token that takes the blanks after it (`blanks`).

    Args:
        tokenizer: the model's.
        llama: the file in llama.cpp.
        data: the held-out texts.
        ends: tokens that end an answer in transformers.
    """
    samples = list(data.samples)
    for text in HARD_STRINGS:
        samples += [Sample(text, encode(tokenizer, text, special=flag), flag) for flag in (True, False)]
    names, stops = _control_names(tokenizer), llama.ends()
    check = _Check(tokenizer, names)
    texts = [str(tokenizer.convert_ids_to_tokens(token)) for token in stops]
    further = [name for name in texts if name and name not in names]
    check.further = further
    literals = 0
    for sample in samples:
        ids = llama.tokenize(sample.text, parse_special=sample.special)
        expected = encode(tokenizer, sample.text, special=sample.special)
        if ids != expected and not sample.special and any(name in sample.text for name in names + further):
            literals += 1
        else:
            check.compare(sample.text, ids, expected, "chat" if sample.special else "plain", special=sample.special)
    for text in HARD_STRINGS:
        ids = llama.tokenize(text, parse_special=True, add_special=True)
        check.compare(text, ids, list(tokenizer(text)["input_ids"]), "with added tokens")
    chats = _check_chats(tokenizer, llama, check)
    missing = sorted(set(ends) - set(stops))
    return TokenCheck(
        len(samples) + len(HARD_STRINGS),
        check.different,
        literals + check.renamed,
        check.normalized,
        marked=check.marked,
        spaced=check.spaced,
        blanks=check.blanks,
        chats=chats.count,
        prompts=chats.prompts,
        unwritten_begin=chats.unwritten_begin,
        missing_ends=[printable(str(tokenizer.convert_ids_to_tokens(token)), 40) for token in missing],
        further_ends=[repr(printable(name, 40)) for name in further],
    )


class _Check:
    """Compares ids and collects the differences."""

    def __init__(self, tokenizer: Any, controls: Sequence[str]) -> None:
        """For a model's tokenizer with these control tokens."""
        steps, patterns = _steps(tokenizer)
        self._tokenizer = tokenizer
        self._splits_marks = any(_LETTERS_AND_MARKS in pattern for pattern in patterns)
        self._forms = [form for form in _UNICODE_FORMS if form in steps]
        self._prefixes = "Metaspace" in steps or "Prepend" in steps
        names = "|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)"
        self._control = re.compile(names)
        self._taking = _taking_blanks(tokenizer)
        taking = "|".join(map(re.escape, self._taking)) or r"(?!)"
        self._blank = re.compile(f"({taking})[{_ASCII_BLANKS}]*{_FAR_BLANK}")
        self._after_control = re.compile(f"({names})(?!{names}|\\Z)", re.DOTALL)
        self.different: list[str] = []
        self.normalized = 0
        self.marked = 0
        self.spaced = 0
        self.blanks = 0
        self.renamed = 0
        self.further: list[str] = []

    def compare(
        self, text: str, ids: Sequence[int], expected: Sequence[int], kind: str, *, special: bool = True
    ) -> None:
        """Note a text whose ids differ; `special`: its control tokens count as such."""
        if list(ids) == list(expected):
            return
        if any(name in text for name in self.further):  # a piece of the vocabulary that llama.cpp reads whole
            self.renamed += 1
            return
        if any(unicodedata.normalize(form, text) != text for form in self._forms):
            self.normalized += 1
        elif self._splits_marks and any(unicodedata.category(char).startswith("M") for char in text):
            self.marked += 1
        elif self._prefixes and self._ends_with(ids, self._spaced_ids(text, special=special)):
            self.spaced += 1
        elif special and self._blank.search(text):
            self.blanks += 1
        else:
            self.different.append(f"{printable(text, 60)!r} ({kind})")

    def _with_spaces(self, text: str, *, special: bool) -> str:
        """The text with the spaces that llama.cpp puts."""
        if not special:
            return " " + text
        first = "" if self._control.match(text) else " "
        return first + self._after_control.sub(r"\1 ", text)

    def _spaced_ids(self, text: str, *, special: bool) -> list[int]:
        """The ids of the text with these spaces. Where control tokens take the blanks after them, and so the space
        too, what follows one is a text of its own."""
        if not special or not self._taking:
            return encode(self._tokenizer, self._with_spaces(text, special=special), special=special)
        ids: list[int] = []
        before = ""
        for part in filter(None, re.split(f"({self._control.pattern})", text)):
            rest = part.lstrip(_ASCII_BLANKS) if before in self._taking else part
            if self._control.fullmatch(part):
                ids.append(self._tokenizer.convert_tokens_to_ids(part))
            elif rest:
                ids += encode(self._tokenizer, " " + rest, special=True)
            before = part
        return ids

    @staticmethod
    def _ends_with(ids: Sequence[int], expected: Sequence[int]) -> bool:
        """Whether the ids are the expected ones, after a begin token that may have been added to them."""
        return list(ids[len(ids) - len(expected) :]) == list(expected) and len(ids) - len(expected) <= 1


def _steps(tokenizer: Any) -> tuple[set[str], list[str]]:
    """The types of a fast tokenizer's normalizers and pre-tokenizers, and the patterns of its splits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = json.loads(backend.to_str()) if backend is not None else {}
    tops = [whole.get("normalizer") or {}, whole.get("pre_tokenizer") or {}]
    parts = [part for top in tops for part in [top, *top.get("normalizers", []), *top.get("pretokenizers", [])]]
    patterns = [str(part["pattern"].get("Regex", "")) for part in parts if isinstance(part.get("pattern"), dict)]
    return {str(part.get("type")) for part in parts}, patterns


def _control_names(tokenizer: Any) -> list[str]:
    """The names of all control tokens, with those that have no role."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = [*tokenizer.all_special_tokens, *(token.content for token in added if token.special)]
    return [name for name in dict.fromkeys(map(str, found)) if name]


def _taking_blanks(tokenizer: Any) -> list[str]:
    """The names of the added tokens that take the blanks after them."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return sorted((token.content for token in added if token.rstrip and token.content), key=len, reverse=True)


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
