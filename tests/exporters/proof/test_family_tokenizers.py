"""Tokenizers and chat templates in the shape of each family: ids of transformers, of llama.cpp and of the Modelfile's
prompt are equal on all hard strings, with special tokens and inside a conversation.

Vocabularies are tiny and trained here; patterns, special tokens, post-processors and templates have the family's form.
"""

from __future__ import annotations

import io
import json
import sysconfig
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engines.data.hard_strings import HARD_STRINGS
from engines.llama.process import LlamaProcess
from exporters.gguf import pre_tokenizers
from exporters.gguf.vocab import Vocabulary, read_vocabulary
from exporters.gguf.write import read_model, write_gguf
from exporters.prompts.effective_tokens import answer_ends
from exporters.proof.parity_data import ParityData
from exporters.proof.token_check import TokenCheck, check_tokens
from tests.exporters.small_models import FILES, build_model

pytestmark = pytest.mark.torch
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_hidden_layers": 1,
}  # fmt: skip
OPENED = "{% if add_generation_prompt %}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    + OPENED + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)  # fmt: skip
QWEN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"
    + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    + OPENED + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)  # fmt: skip
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + "
    "'<end_of_turn>\\n' }}{% endfor %}" + OPENED + "{{ '<start_of_turn>model\\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    + OPENED + "{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)  # fmt: skip
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    + OPENED + "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)  # fmt: skip
GRANITE = (
    "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\\n' }}"
    "{% endfor %}" + OPENED + "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|assistant|>\\n' + m.content + eos_token + '\\n' }}"
    "{% else %}{{ '<|' + m.role + '|>\\n' + m.content + '\\n' }}{% endif %}{% endfor %}"
    + OPENED
    + "{{ '<|assistant|>\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'system' %}{{ '[SYSTEM_PROMPT] ' + m.content + '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}{% else %}"
    "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    + OPENED + "{{ '<|start|>assistant' }}{% endif %}"
)  # fmt: skip


MIXED = ["ÉTÉété ЖЖжжЖж ΑΒΓαβγ नमस्ते"] * 300
"""Words whose cases and marks a pre-tokenizer may split, often enough to become one token."""


@dataclass(frozen=True)
class Family:
    """A byte-level tokenizer in the shape of a family's.

    Attributes:
        pre: llama.cpp's name of the pre-tokenizer, whose pattern it has; "starcoder" has single digits.
        special: the added tokens.
        bos: the begin token, or None.
        eos: the end token.
        template: the chat template.
        begins: whether the post-processor puts the begin token before a text.
        ends: more end tokens, of generation_config.json.
        nfc: whether its normalizer composes letters.
        texts: added tokens that are ordinary text.
        taking: those of the added tokens that take the blanks after them.
    """

    pre: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    template: str
    begins: bool = False
    ends: tuple[str, ...] = ()
    nfc: bool = False
    texts: tuple[str, ...] = ()
    taking: tuple[str, ...] = ()


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
L3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
FAMILIES = {
    "Llama 3": Family("llama-bpe", L3, L3[0], L3[4], LLAMA3, True, (L3[1], L3[5])),
    "SmolLM2": Family("starcoder", IM, IM[1], IM[2], CHATML),
    "SmolLM3": Family("llama-bpe", (*L3, *IM[1:]), None, IM[2], CHATML),
    "Qwen2.5": Family("qwen2", IM, None, IM[2], QWEN, ends=(IM[0],), nfc=True),
    "Qwen3": Family("qwen2", (*IM, "<think>", "</think>"), None, IM[2], CHATML, nfc=True),
    "Qwen3.5": Family("qwen35", (*IM, "<think>", "</think>"), None, IM[2], CHATML, nfc=True),
    "Phi-4": Family("dbrx", (*IM, "<|im_sep|>"), IM[0], IM[2], PHI4),
    "Granite 3": Family("starcoder", ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), "<|end_of_text|>",
                        "<|end_of_text|>", GRANITE),
    "OLMo 2": Family("dbrx", ("<|endoftext|>", "<|pad|>"), "<|endoftext|>", "<|endoftext|>", OLMO2),
    "Ministral 3": Family("tekken", ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]",
                                     "[/SYSTEM_PROMPT]"), "<s>", "</s>", MISTRAL, True),
    "gpt-oss": Family("gpt-4o", ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|start|>", "<|channel|>",
                                 "<|message|>", "<|end|>", "<|call|>"), "<|startoftext|>", "<|return|>", HARMONY,
                      ends=("<|endoftext|>", "<|call|>")),
}  # fmt: skip


@cache
def texts() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    return [(root / name).read_text(encoding="utf-8")[:40_000] for name in FILES] + [*HARD_STRINGS, *MIXED]


def build(folder: Path, family: Family) -> Path:
    """A model folder with the tokenizer of a family."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers
    from tokenizers import pre_tokenizers as steps
    from transformers import PreTrainedTokenizerFast

    pattern, whole = next((key for key, name in pre_tokenizers._PATTERNS.items() if name == family.pre), ("", False))
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    if family.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = steps.Sequence(
        [steps.Split(Regex(pattern), "isolated"), steps.ByteLevel(add_prefix_space=False, use_regex=False)]
        if pattern
        else [steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=steps.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False, rstrip=name in family.taking) for name in family.special]
    )
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in family.texts])
    if family.begins:
        assert family.bos is not None
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A $B",
            special_tokens=[(family.bos, tokenizer.token_to_id(family.bos))],
        )
    words = folder / "words"
    names = {"eos_token": family.eos, **({"bos_token": family.bos} if family.bos else {})}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=family.template, **names)
    fast.save_pretrained(words)
    ids = [tokenizer.token_to_id(name) for name in (family.eos, *family.ends)]
    begin = tokenizer.token_to_id(family.bos) if family.bos else None
    size = tokenizer.get_vocab_size()
    return build_model(folder / "model", words, **SHAPE, vocab_size=size, bos_token_id=begin, eos_token_id=ids)


def checked(folder: Path, path: Path) -> tuple[Any, TokenCheck]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = read_model(folder)
    write_gguf(model, model.plan("F16"), path, None)
    with LlamaProcess(path, 64, 1) as llama:
        check = check_tokens(tokenizer, llama, ParityData("", "", [], []), answer_ends(folder, model.config, tokenizer))
    return tokenizer, check


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_equal_in_transformers_llama_cpp_and_the_modelfile(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    _, check = checked(build(tmp_path, family), tmp_path / "m.gguf")
    assert check.different == []
    assert check.missing_ends == []
    assert check.unwritten_begin == ""
    assert bool(check.normalized) is family.nfc
    assert bool(check.marked) is (family.pre in ("gpt-4o", "tekken"))
    assert check.spaced == 0
    assert check.chats == len(HARD_STRINGS)
    assert check.prompts >= 60


def test_a_text_token_that_llama_cpp_takes_for_an_end_refuses_no_file_and_is_named(tmp_path: Path) -> None:
    """As Gemma's `</s>`, which ends struck-out text in HTML."""
    _, check = checked(build(tmp_path, replace(FAMILIES["Qwen3"], texts=("</s>",))), tmp_path / "m.gguf")
    assert check.different == []
    assert check.further_ends == ["'</s>'"]
    assert any("an answer with it ends early" in text for text in check.warnings())


def test_a_piece_that_llama_cpp_takes_for_an_end_refuses_no_file(tmp_path: Path) -> None:
    """As Qwen2.5's `</s>`, which its tokenizer never makes of that text, and llama.cpp always."""
    folder = build(tmp_path, FAMILIES["SmolLM2"])
    content = json.loads((folder / "tokenizer.json").read_text())
    pieces = content["model"]["vocab"]
    longest = max((piece for piece in pieces if piece.isascii()), key=len)
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if longest not in ("".join(pair), *pair)]
    pieces["</s>"] = pieces.pop(longest)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    _, check = checked(folder, tmp_path / "m.gguf")
    assert check.different == []
    assert check.further_ends == ["'</s>'"]


@pytest.mark.parametrize("name", ["phi3-like", "Phi-3.5-assistant"])
def test_the_name_of_a_model_does_not_change_its_tokens(tmp_path: Path, name: str) -> None:
    """llama.cpp reads from the name that control tokens take blanks, and may then not load the file at all."""
    _, check = checked(build(tmp_path, FAMILIES["Qwen3"]), tmp_path / f"{name}.gguf")
    assert check.different == []


def test_control_tokens_that_take_blanks_do_so_in_llama_cpp_whatever_the_model_is_called(tmp_path: Path) -> None:
    taking = ("</s>", "<|user|>", "<|assistant|>", "<|end|>")
    family = replace(FAMILIES["Qwen3"], special=("<unk>", "<s>", "<|endoftext|>", *taking), eos="<|endoftext|>")
    folder = build(tmp_path, replace(family, template=PHI3, ends=(), nfc=False, taking=taking))
    _, check = checked(folder, tmp_path / "assistant.gguf")
    assert check.different == []
    assert check.blanks > 0
    assert any("only ASCII blanks" in text for text in check.warnings())


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece tokenizer in the shape of a family's.

    Attributes:
        tokenizer_class: the class in tokenizer_config.json.
        prefix: whether SentencePiece puts a space before a text.
        special: the added tokens.
        template: the chat template.
        begins: whether a text begins with <s>.
        fields: more of tokenizer_config.json.
        taking: whether the added tokens take the blanks after them.
    """

    tokenizer_class: str
    prefix: bool
    special: tuple[str, ...]
    template: str
    begins: bool = True
    legacy: bool | None = None
    taking: bool = False


PIECES = {
    "Llama 2": Pieces("LlamaTokenizer", True, (), MISTRAL, legacy=False),
    "Mistral 7B": Pieces("LlamaTokenizer", True, ("[INST]", "[/INST]"), MISTRAL, legacy=True),
    "Phi-3": Pieces(
        "LlamaTokenizer", True, ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), PHI3, False, False, taking=True
    ),
    "Gemma": Pieces("GemmaTokenizer", False, ("<start_of_turn>", "<end_of_turn>"), GEMMA),
}


def build_pieces(folder: Path, family: Pieces) -> Path:
    """A model folder with tokenizer.model and the tokenizer.json that transformers makes of it."""
    import sentencepiece
    import transformers
    from tokenizers import AddedToken

    text, model = "".join(texts()), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text[start : start + 4000] for start in range(0, len(text), 4000)]),
        model_writer=model, model_type="bpe", vocab_size=900, character_coverage=0.999, split_digits=True,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, add_dummy_prefix=family.prefix, max_sentence_length=65536, unk_id=0,
        bos_id=1, eos_id=2, pad_id=-1, control_symbols=list(family.special), num_threads=1, minloglevel=2,
    )  # fmt: skip
    words = folder / "words"
    words.mkdir(parents=True)
    (words / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"add_bos_token": family.begins, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings |= {"tokenizer_class": family.tokenizer_class}
    settings |= {} if family.legacy is None else {"legacy": family.legacy}
    (words / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = getattr(transformers, family.tokenizer_class).from_pretrained(words)
    if family.special:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [AddedToken(name, rstrip=family.taking, special=True) for name in family.special]}
        )
    if family.taking:
        tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
        tokenizer.add_tokens([AddedToken("</s>", rstrip=True, special=True)], special_tokens=True)
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(words)
    return build_model(folder / "model", words, **SHAPE, vocab_size=len(tokenizer) + 3)


@pytest.mark.parametrize("name", PIECES)
def test_ids_of_sentencepiece_differ_by_the_space_that_llama_cpp_puts_and_by_nothing_else(
    tmp_path: Path, name: str
) -> None:
    family = PIECES[name]
    _, check = checked(build_pieces(tmp_path, family), tmp_path / "m.gguf")
    assert check.different == []
    assert check.missing_ends == []
    assert check.unwritten_begin == ""
    assert bool(check.spaced) is family.prefix
    assert any("one more space in llama.cpp" in text for text in check.warnings()) is family.prefix
    assert check.chats == len(HARD_STRINGS)
    assert check.prompts >= 60


def test_a_dropped_space_is_no_such_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a tokenizer with the space, written without it."""
    folder = build_pieces(tmp_path, PIECES["Llama 2"])

    def without(folder: Path, config: dict[str, Any]) -> Vocabulary:
        vocabulary = read_vocabulary(folder, config)
        vocabulary.add_space_prefix = False
        return vocabulary

    monkeypatch.setattr("exporters.gguf.write.read_vocabulary", without)
    assert len(checked(folder, tmp_path / "m.gguf")[1].different) > 60
