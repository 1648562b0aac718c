"""Load what is evaluated: a model folder, an adapter on its base, or a model of the local hub cache. Never the network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.manifest import manifest_sha256
from recipes.problems import OperatorError


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be asked, in evaluation mode on the device that it runs on.

    `tokenizer_model` is the SentencePiece file that came with it, if there is one.
    """

    model: Any
    tokenizer: Any
    tokenizer_model: Path | None


def load_model(path: Path | None, name: str) -> LoadedModel:
    """Load a model or an adapter.

    Args:
        path: a model folder or an adapter folder; None for a hub id.
        name: the hub id, when there is no folder.

    Raises:
        OperatorError: it is not cached, not a model, or an adapter whose base is gone or is another one.
    """
    if path is None:
        return _finished(_pretrained(name), _tokenizer(name), None)
    if (path / "adapter_config.json").is_file():
        return _load_adapter(path)
    return _finished(_pretrained(path), _tokenizer(path), _tokenizer_model(path))


def base_of(adapter: Path) -> Path | str:
    """The base that an adapter was trained on: a folder, or a hub id.

    Raises:
        OperatorError: the folder is gone, or holds another model than the one the adapter was trained on.
    """
    file = adapter / "base.json"
    if not file.is_file():
        config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
        named = str(config.get("base_model_name_or_path") or "")
        return Path(named) if Path(named).is_dir() else named
    base = json.loads(file.read_text("utf-8"))
    path = Path(base["path"])
    if not path.is_dir():
        if path.is_absolute():
            raise OperatorError(
                f"the base of {adapter} was {path}, which is gone", "restore it, or train the adapter again"
            )
        return str(base["path"])
    expected = base.get("manifest_sha256")
    if expected and (path / "manifest.json").is_file() and manifest_sha256(path) != expected:
        raise OperatorError(
            f"{path} is not the base that {adapter} was trained on: its manifest differs",
            "train the adapter again on it",
        )
    return path


def _load_adapter(path: Path) -> LoadedModel:
    from peft import PeftModel  # seconds to import, and not needed for a plain model

    base = base_of(path)
    model = PeftModel.from_pretrained(_pretrained(base), path)
    tokenizer_folder = path if (path / "tokenizer_config.json").is_file() else base
    tokenizer_model = _tokenizer_model(path) or (_tokenizer_model(base) if isinstance(base, Path) else None)
    return _finished(model, _tokenizer(tokenizer_folder), tokenizer_model)


def _pretrained(source: Path | str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(source, local_files_only=True, dtype="auto")
    except (OSError, ValueError) as error:
        raise _not_loaded(source, "model", error) from error


def _tokenizer(source: Path | str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _not_loaded(source, "tokenizer", error) from error


def _not_loaded(source: Path | str, what: str, error: Exception) -> OperatorError:
    detail = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(source, Path):
        return OperatorError(f"{source} holds no {what} that can be loaded: {detail}", "give a folder with config.json")
    return OperatorError(
        f"{source!r} is not in the local Hugging Face cache (no {what}): {detail}",
        f"fetch it first with: hf download {source}; evaluation itself never uses the network",
    )


def _tokenizer_model(path: Path) -> Path | None:
    file = path / "tokenizer.model"
    return file if file.is_file() else None


def _finished(model: Any, tokenizer: Any, tokenizer_model: Path | None) -> LoadedModel:
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    return LoadedModel(model, tokenizer, tokenizer_model)
