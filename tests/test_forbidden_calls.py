"""What no module of the product does: run text as a program, load pickles, unpack archives, fetch while it works."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = [
    path for package in ("cockpit", "engines", "exporters", "recipes") for path in (ROOT / package).rglob("*.py")
]
CALLS = {
    "os.system", "os.popen", "eval", "exec", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.load",
    "numpy.load", "np.load", "shutil.unpack_archive", "zlib.decompress", "zlib.decompressobj",
}  # fmt: skip
IMPORTS = {
    "pickle", "dill", "marshal", "shelve", "joblib", "cloudpickle", "torch.distributed.checkpoint", "zipfile",
    "tarfile", "gzip", "bz2", "lzma", "pip", "ensurepip", "urllib.request", "urllib3", "requests", "httpx",
    "http.client", "ftplib", "aiohttp",
}  # fmt: skip
LOCAL = {"AutoModelForCausalLM", "AutoTokenizer", "AutoConfig", "AutoModel", "GenerationConfig"}
"""Classes whose `from_pretrained` would take a folder that is missing for the name of a model on the hub."""
DOWNLOADS = {"exporters/hf_model/model_folder.py": ["snapshot_download without local_files_only=True"]}
"""Where a model may come from the hub: the operator must have allowed it in the environment."""

STREAMED = {"engines/data/readers/lines.py": ["gzip"], "engines/data/sources/plain.py": ["gzip"]}
"""Packed files that are unpacked in a stream, by rows or pieces of a bounded size: nothing of them grows in memory or
on disk."""

CONFINED = {
    "engines/judging/sandbox/program_side.py": ["exec"],
    "engines/judging/sandbox/tests_side.py": ["exec", "exec"],
}
"""Code of answers and of test files, in the sandbox, where the operator has allowed it."""

ASKED = {"engines/judging/model_judge/endpoint.py": ["http.client"]}
"""Requests to a URL that the operator named, without redirects, of a bounded size and time."""


def _name(node: ast.expr) -> str:
    """`a.b.c` of an expression of names; empty for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        above = _name(node.value)
        return f"{above}.{node.attr}" if above else ""
    return ""


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module and name that a module imports, with dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def problems(text: str) -> list[str]:
    """What a module does that it must not."""
    tree = ast.parse(text)
    found = [name for name in imported(tree) for bad in IMPORTS if name == bad or name.startswith(f"{bad}.")]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called, words = _name(node.func), {word.arg: word.value for word in node.keywords if word.arg}
        of, _, method = called.rpartition(".")
        found += [called] if called in CALLS else []
        found += [f"{word}=" for word in ("shell", "trust_remote_code") if word in words]
        only = words.get("local_files_only")
        local = isinstance(only, ast.Constant) and only.value is True
        if not local and ((method == "from_pretrained" and of in LOCAL) or method == "snapshot_download"):
            found.append(f"{called} without local_files_only=True")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_text_loads_pickles_unpacks_archives_or_fetches(path: Path) -> None:
    assert problems(path.read_text()) == {**DOWNLOADS, **STREAMED, **CONFINED, **ASKED}.get(
        str(path.relative_to(ROOT)), []
    )


@pytest.mark.parametrize(
    "line",
    [
        "import os; os.system('x')", "import subprocess; subprocess.run('x', shell=True)", "eval('1')",
        "from pickle import loads", "import torch; torch.load('f', weights_only=True)", "import tarfile",
        "import torch.distributed.checkpoint as dcp", "from torch.distributed import checkpoint",
        "import numpy as np; np.load('f')", "AutoConfig.from_pretrained('x')",
        "AutoTokenizer.from_pretrained('x', local_files_only=False)", "import urllib.request",
        "AutoModel.from_pretrained('x', local_files_only=True, trust_remote_code=True)", "snapshot_download('a/b')",
    ],
)  # fmt: skip
def test_each_of_these_is_found(line: str) -> None:
    assert problems(line)


def test_what_the_product_does_is_allowed() -> None:
    assert (
        problems("import subprocess; subprocess.Popen(['x']); AutoConfig.from_pretrained(f, local_files_only=True)")
        == []
    )
