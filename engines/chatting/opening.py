"""Opens the model of a chat with the loader of an evaluation, and reports how far it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.artifacts.adapter_folder import is_adapter
from engines.artifacts.model_files import weights_of
from engines.chatting.lines import Job, Loading
from engines.chatting.manners import resident_bytes
from engines.chatting.talk import Talk
from recipes.problems import OperatorError

GGUF = ".gguf"
LOOK_S = 0.25


def open_talk(job: Job, threads: int, report: Callable[[Loading], None], warn: Callable[[str], None]) -> Talk:
    """A model that talks, by a path or a hub id.

    Args:
        job: the model.
        threads: CPU threads.
        report: takes what is loaded so far.
        warn: takes what the operator should know.

    Raises:
        OperatorError: it is not a model that can be asked.
    """
    talk = _gguf(job, threads, report) if Path(job.model).suffix == GGUF else _folder(job, threads, report, warn)
    if talk.plain and not job.plain:
        warn("the model has no chat template: it continues the text of a prompt; --chat-template FILE gives it one")
    return talk


def _gguf(job: Job, threads: int, report: Callable[[Loading], None]) -> Talk:
    from engines.chatting.gguf_talk import GgufTalk

    report(Loading(phase="opening the file"))
    adapter = Path(job.adapter) if job.adapter else None
    return GgufTalk(Path(job.model), threads=threads, adapter=adapter, template=job.template, plain=job.plain)


def _folder(job: Job, threads: int, report: Callable[[Loading], None], warn: Callable[[str], None]) -> Talk:
    if job.adapter is not None:
        raise OperatorError("--adapter — only for GGUF files", "an adapter folder is itself a MODEL: it names its base")
    # A GGUF file needs none of these, which take seconds to import.
    import torch

    from engines.chatting.folder_talk import FolderTalk
    from engines.evaluate.model import base_of, load_model
    from engines.training.inputs import cached_folder

    torch.set_num_threads(threads)
    path = Path(job.model)
    folder = path if path.is_dir() else cached_folder(job.model)
    folders = [folder, base_of(folder)] if is_adapter(folder) else [folder]
    total = sum(file.stat().st_size for file in weights_of(folders) if file.suffix == ".safetensors")
    with _growth(total, report):
        loaded = load_model(folder, job.model, warn)
    plain = job.plain or not (job.template or loaded.view.template)
    return FolderTalk(loaded, template=job.template, plain=plain)


@contextmanager
def _growth(total: int, report: Callable[[Loading], None]) -> Iterator[None]:
    """Report several times a second how many bytes of the weights are in memory, by the growth of this process."""
    before, ended = resident_bytes(os.getpid()), threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            grown = max(0, resident_bytes(os.getpid()) - before)
            report(Loading(phase="loading weights", done=min(grown, total), total=total))

    report(Loading(phase="loading weights", total=total))
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()
