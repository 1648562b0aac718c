"""Finds and runs the scripts of llama.cpp's own converter: of models, and of adapters.

They are in a checkout of llama.cpp, and in the source distribution of llama-cpp-python. They run in processes of their
own, with the operator's Python.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.files import file_sha256, read_regular_text
from exporters.process.foreign_program import ForeignProgramError, run_program
from recipes.problems import OperatorError, printable

SCRIPT = "convert_hf_to_gguf.py"
ADAPTER_SCRIPT = "convert_lora_to_gguf.py"
VARIABLE = "COCKPIT_LLAMA_CPP"
PYTHON_VARIABLE = "COCKPIT_LLAMA_CPP_PYTHON"
_IN_SOURCE_DISTRIBUTION = Path("vendor") / "llama.cpp"
_HASH = re.compile(r"[0-9a-f]{40}")
_WITH_DRAFTS = ("Qwen3_5", "Qwen3Next")
HOW_TO_GET = (
    "get it with `git clone --depth 1` of llama.cpp's repository, or unpack the source distribution of "
    "llama-cpp-python (`pip download --no-deps --no-binary :all: llama-cpp-python`), and name the folder: "
    'llama_cpp = "DIR"'
)


@dataclass(frozen=True)
class Converter:
    """A checkout's script of models, and the interpreter that runs it."""

    script: Path
    python: str

    def record(self) -> dict[str, Any]:
        """Facts about the converter, for parity.json."""
        return {
            "name": SCRIPT,
            "path": str(self.script),
            "sha256": file_sha256(self.script),
            "commit": _commit(self.script.parent),
        }

    def convert(
        self, folder: Path, options: Sequence[str], file_type: str, target: Path, log: Path, look: Callable[[], None]
    ) -> None:
        """Write a model folder as a file of one of the script's own types; `options` are those of `options_for`.

        Raises:
            ForeignProgramError: the script failed.
        """
        self._run(self.script, [str(folder), *options], file_type, target, log, look)

    def convert_adapter(
        self, base: Path, adapter: Path, file_type: str, target: Path, log: Path, look: Callable[[], None]
    ) -> None:
        """Write a PEFT adapter of a base model as a GGUF adapter.

        Raises:
            ForeignProgramError: the script is missing or failed.
        """
        script = self.script.with_name(ADAPTER_SCRIPT)
        if not script.is_file():
            raise ForeignProgramError(f"is not in {script.parent}", "")
        self._run(script, ["--base", str(base), str(adapter)], file_type, target, log, look)

    def _run(
        self, script: Path, inputs: list[str], file_type: str, target: Path, log: Path, look: Callable[[], None]
    ) -> None:
        python = shutil.which(self.python) or self.python
        command = [python, str(script), *inputs, "--outtype", file_type.lower(), "--outfile", str(target)]
        run_program(command, log, look, {"HF_HUB_OFFLINE": "1"})


def options_for(architecture: str, tensors: Iterable[str]) -> list[str]:
    """What the script must be given beside the types, for a class of model and the names of its tensors.

    The script expects the drafting layers that Qwen3.5 was published with; a model that transformers saved has none.
    """
    drafts = any(name.startswith("mtp.") for name in tensors)
    return ["--no-mtp"] if architecture.startswith(_WITH_DRAFTS) and not drafts else []


def find_converter(configured: str | None) -> Converter:
    """Find the script: itself, in a checkout, or in the unpacked source distribution of llama-cpp-python.

    Args:
        configured: the recipe's `llama_cpp`.

    Raises:
        OperatorError: no place is named, or it lacks the script.
    """
    named_by, place = ("llama_cpp", configured) if configured else (VARIABLE, os.environ.get(VARIABLE))
    if not place:
        raise OperatorError(
            f'converter — got "upstream", which needs {SCRIPT} of llama.cpp; neither llama_cpp nor {VARIABLE} names '
            "a folder with it",
            HOW_TO_GET,
        )
    given = Path(place).expanduser()
    places = [given, given / SCRIPT, given / _IN_SOURCE_DISTRIBUTION / SCRIPT]
    script = next((path for path in places if path.name == SCRIPT and path.is_file()), None)
    if script is None:
        raise OperatorError(f"{named_by} — no {SCRIPT} in {printable(str(given), 400)}", HOW_TO_GET)
    python = os.environ.get(PYTHON_VARIABLE) or sys.executable
    if shutil.which(python) is None:
        raise OperatorError(f"{PYTHON_VARIABLE} — program not found: {printable(python, 300)}")
    return Converter(script.absolute(), python)


def _commit(checkout: Path) -> str | None:
    """The checkout's commit, read from its files, because git would run programs that its configuration names."""
    git = checkout / ".git"
    try:
        head = read_regular_text(git / "HEAD").strip()
        if head.startswith("ref: "):
            name = head.removeprefix("ref: ")
            loose = git / name
            if loose.is_file() and ".." not in name:
                head = read_regular_text(loose).strip()
            else:
                packed = read_regular_text(git / "packed-refs").splitlines()
                head = next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, UnicodeDecodeError):
        return None
    return head if _HASH.fullmatch(head) else None
