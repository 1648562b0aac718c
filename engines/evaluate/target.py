"""The models that can be asked: a folder, an adapter over its base model, a GGUF file with or without an adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.artifacts.adapter_folder import is_adapter
from engines.artifacts.model_files import sha256_of, weights_of
from engines.evaluate.asking import Answerer
from engines.evaluate.folder_answers import FolderAnswers
from engines.evaluate.gguf_answers import GgufAnswers
from engines.evaluate.gguf_files import check_gguf_files
from engines.evaluate.model import LoadedModel, base_of, load_model
from engines.files import file_sha256
from engines.llama.drawing import GREEDY, DrawRules
from engines.llama.gguf_file import part_paths
from engines.training.inputs import cached_folder
from recipes.problems import OperatorError

GGUF = ".gguf"


@dataclass(frozen=True)
class Manner:
    """How models are asked.

    Attributes:
        limit: most new tokens of an answer.
        batch_size: prompts that a folder's model answers together.
        threads: CPU threads of llama.cpp.
        template: the text of a chat template; empty for the model's own.
        plain: prompts are texts to continue, without a chat template.
        moment: the local time that a template sees, in ISO form.
        rules: how tokens are drawn; greedy by default.
    """

    limit: int
    batch_size: int = 1
    threads: int = 1
    template: str = ""
    plain: bool = False
    moment: str = ""
    rules: DrawRules = GREEDY


def is_gguf(path: Path | None) -> bool:
    """Whether a model is a GGUF file by its name."""
    return path is not None and path.suffix == GGUF


def answerer_of_folder(folder: Path, loaded: LoadedModel, manner: Manner) -> FolderAnswers:
    """A loaded model that answers.

    Args:
        folder: its folder; for an adapter, the adapter's.
        loaded: the model.
        manner: how it is asked.
    """
    files = _files_of(folder)
    return FolderAnswers(
        loaded,
        sha256=sha256_of(files),
        size_bytes=sum(file.stat().st_size for file in files if file.suffix == ".safetensors"),
        limit=manner.limit,
        batch_size=manner.batch_size,
        template=manner.template,
        plain=manner.plain,
        moment=manner.moment,
        rules=manner.rules,
    )


def answerer_of_gguf(file: Path, manner: Manner, adapter: Path | None = None) -> GgufAnswers:
    """A GGUF file that answers.

    Raises:
        OperatorError: a file is missing or cannot be loaded, or there is no chat template.
    """
    check_gguf_files(file, adapter)
    return GgufAnswers(
        file,
        sha256=sha256_of(part_paths(file)),
        limit=manner.limit,
        threads=manner.threads,
        adapter=adapter,
        adapter_sha256=file_sha256(adapter) if adapter else "",
        template=manner.template,
        plain=manner.plain,
        moment=manner.moment,
        rules=manner.rules,
    )


@dataclass(frozen=True)
class Target:
    """A model that is evaluated: a loaded folder, or a GGUF file with or without an adapter.

    Attributes:
        loaded: the model of the folder; None for a GGUF file.
        place: the folder, or the file.
        adapter: a GGUF adapter over the file.
    """

    loaded: LoadedModel | None
    place: Path
    adapter: Path | None = None

    def answerer(self, manner: Manner) -> tuple[Answerer, Callable[[], None]]:
        """The model that answers, and what closes it.

        Raises:
            OperatorError: it cannot answer.
        """
        if self.loaded is not None:
            return answerer_of_folder(self.place, self.loaded, manner), lambda: None
        gguf = answerer_of_gguf(self.place, manner, self.adapter)
        return gguf, gguf.close

    def identity(self) -> dict[str, str]:
        """Which model it is, by the SHA-256 of its weights."""
        if self.loaded is not None:
            return {"model": sha256_of(_files_of(self.place)), "runtime": "transformers"}
        over = {"adapter": file_sha256(self.adapter)} if self.adapter else {}
        return {"model": sha256_of(part_paths(self.place)), **over, "runtime": "llama.cpp"}


def open_target(
    name: str,
    adapter: Path | None,
    warn: Callable[[str], None],
    *,
    dtype: str = "auto",
    load_in_4bit: bool = False,
) -> Target:
    """A model by a path or a hub id.

    Args:
        name: the path of a folder or of a GGUF file, or a hub id.
        adapter: a GGUF adapter over a GGUF file.
        warn: takes what the operator should know.
        dtype: type of the weights of a folder, as for `load_model`.
        load_in_4bit: as for `load_model`.

    Raises:
        OperatorError: it is not a model that can be evaluated.
    """
    path = Path(name)
    if is_gguf(path):
        check_gguf_files(path, adapter)
        if load_in_4bit:
            raise OperatorError("load_in_4bit — only for adapter folders; got a GGUF file", "leave it out")
        return Target(None, path, adapter)
    if adapter is not None:
        raise OperatorError("--adapter — only for GGUF files", "an adapter folder is itself a MODEL: it names its base")
    folder = path if path.is_dir() else cached_folder(name)
    return Target(load_model(folder, name, warn, dtype=dtype, load_in_4bit=load_in_4bit), folder)


def _files_of(folder: Path) -> list[Path]:
    """The files that decide what a folder answers; of an adapter, also those of its base model."""
    return weights_of([folder, base_of(folder)] if is_adapter(folder) else [folder])
