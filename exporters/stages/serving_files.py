"""Writes the files for serving an export beside it: a Modelfile for Ollama and the commands of llama.cpp."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.artifacts.generation_config import end_ids, read_generation_config
from engines.files import write_durably
from exporters.hf_model.architectures import exact_context
from exporters.prompts.chat_format import ChatFormat, modelfile_format
from exporters.prompts.effective_tokens import added_tokens
from recipes import quantities

MODELFILE, COMMANDS = "Modelfile", "llama.cpp.txt"
SERVED_CONTEXT = 8192
"""The longest suggested context; the cache of a longer one takes much memory from the first token on."""
_SAMPLING = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}  # fmt: skip
"""Fields of generation_config.json by their names in a Modelfile."""


@dataclass(frozen=True)
class Served:
    """How a model is served.

    Attributes:
        chat: the regular form of its chat template, if it has one.
        has_template: whether it has a chat template at all.
        stops: control tokens at which an answer ends, by name.
        context: tokens of context, at most `SERVED_CONTEXT`.
        sampling: parameters of generation_config.json, by their Modelfile names.
        begin: the token that a runtime puts before every prompt, which must not begin with it too; empty if none.
    """

    chat: ChatFormat | None
    has_template: bool
    stops: tuple[str, ...]
    context: int
    sampling: Mapping[str, float]
    begin: str = ""


def served(folder: Path, config: Mapping[str, Any], tokenizer: Any) -> Served:
    """Read from a model's folder how to serve it. Missing values, and values that are not numbers, are left out.

    Raises:
        TemplateLimitError: the chat template computes for too long, or needs too much memory.
    """
    generation = read_generation_config(folder)
    begin = tokenizer.bos_token or "" if added_tokens(tokenizer).begin else ""
    chat = modelfile_format(tokenizer, begin)
    ids = [*end_ids(config), *end_ids(generation), tokenizer.eos_token_id]
    names = [
        str(tokenizer.convert_ids_to_tokens(token))
        for token in dict.fromkeys(ids)
        if token is not None and token < len(tokenizer)
    ]
    end = chat.after["assistant"].strip() if chat else ""
    if end and end in tokenizer.all_special_tokens:
        names.insert(0, end)
    sampling = {
        name: float(generation[field])
        for field, name in _SAMPLING.items()
        if isinstance(generation.get(field), int | float) and not isinstance(generation[field], bool)
    }
    if generation.get("do_sample") is False:
        sampling = {"temperature": 0.0}
    context = min(exact_context(config), SERVED_CONTEXT)
    has_template = bool(getattr(tokenizer, "chat_template", None))
    return Served(chat, has_template, tuple(dict.fromkeys(names)), context, sampling, begin)


def modelfile(model: Served, gguf: str, *, adapters: Sequence[str] = ()) -> str:
    """An Ollama Modelfile for a GGUF file beside it.

    Args:
        model: how the model is served.
        gguf: the file's name.
        adapters: names of GGUF adapters that are applied to it.
    """
    lines = [f"FROM ./{gguf}", *(f"ADAPTER ./{name}" for name in adapters)]
    if model.chat is not None:
        lines.append(f"TEMPLATE {_quoted(_go_template(model.chat, model.begin))}")
        if model.chat.system:
            lines.append(f"SYSTEM {_quoted(model.chat.system)}")
    elif model.has_template:
        lines.append(
            "# The chat template cannot be written in Ollama's language; Ollama uses the one in the GGUF file."
        )
    else:
        lines += ["# The model has no chat template: it continues text.", f"TEMPLATE {_quoted('{{ .Prompt }}')}"]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in model.stops]
    lines.append(f"PARAMETER num_ctx {model.context}")
    lines += [f"PARAMETER {name} {quantities.exact(value)}" for name, value in model.sampling.items()]
    return "\n".join(lines) + "\n"


def commands(model: Served, ggufs: Sequence[str], *, adapters: Sequence[str] = ()) -> str:
    """llama.cpp's commands for the files in the same folder, one paragraph per file."""
    lora = "".join(f" --lora {shlex.quote(name)}" for name in adapters[:1])
    talk = "--jinja -cnv" if model.has_template else "-no-cnv -n 128 -p 'def '"
    lines = ["# Run these in the folder of the files, with llama.cpp's programs on the PATH.", ""]
    for name in ggufs:
        file = shlex.quote(name)
        lines.append(f"llama-cli -m {file} -c {model.context} {talk}{lora}")
        lines.append(
            f"llama-server -m {file} -c {model.context}{' --jinja' if model.has_template else ''}{lora} --port 8080"
        )
        lines.append("")
    if len(adapters) > 1:
        lines += [
            "# Other adapters for the same base model:",
            *(f"#   --lora {shlex.quote(name)}" for name in adapters[1:]),
            "",
        ]
    return "\n".join(lines)


def write_serving_files(out: Path, model: Served, ggufs: Sequence[str], adapters: Sequence[str] = ()) -> list[str]:
    """Write both files, the Modelfile for the last of the GGUF files; one more Modelfile for each adapter.

    Returns:
        Their names.
    """
    texts = {MODELFILE: modelfile(model, ggufs[-1]), COMMANDS: commands(model, ggufs, adapters=adapters)}
    for name in adapters:
        texts[f"{MODELFILE}.{Path(name).stem}"] = modelfile(model, ggufs[-1], adapters=[name])
    for name, text in texts.items():
        write_durably(out / name, text.encode())
    return list(texts)


def _go_template(chat: ChatFormat, begin: str) -> str:
    """The template in Go's language: https://pkg.go.dev/text/template, with Ollama's `.Messages`, `.Role`,
    `.Content`. `begin`: the token that the runtime itself puts before a prompt."""
    roles = "".join(
        f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{_go_text(chat.before[role])}{{{{ '
        f".Content }}}}"
        f"{_go_text(chat.after[role])}"
        for number, role in enumerate(role for role in ("system", "user", "assistant") if role in chat.before)
    )
    start = _go_text(chat.start.removeprefix(begin))
    return f"{start}{{{{ range .Messages }}}}{roles}{{{{ end }}}}{{{{ end }}}}{_go_text(chat.opening)}"


def _go_text(text: str) -> str:
    """Literal text in a Go template: braces that would open an action are written as strings."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    """A value in a Modelfile, in three quotes, which it cannot contain; such a value is written in JSON's quotes."""
    return f'"""{text}"""' if '"""' not in text and not text.endswith('"') else json.dumps(text)
