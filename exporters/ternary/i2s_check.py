"""`python -m exporters.ternary.i2s_check FILE.gguf [MODEL_FOLDER]`: checks an i2_s file, and compares it with the
model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engines.words import ExitCode
from exporters.gguf.write import read_model
from exporters.ternary.i2s_file import validate
from recipes.problems import OperatorError


def main(words: list[str]) -> ExitCode:
    """Print what was checked as JSON; return 2 if the check fails or the usage is wrong."""
    if not 1 <= len(words) <= 2:
        sys.stderr.write("usage: python -m exporters.ternary.i2s_check FILE.gguf [MODEL_FOLDER]\n")
        return ExitCode.MISTAKE
    try:
        model = read_model(Path(words[1])) if len(words) > 1 else None
        checked = validate(Path(words[0]), model)
    except OperatorError as error:
        sys.stderr.write(f"{error.message}\n" + (f"  {error.hint}\n" if error.hint else ""))
        return ExitCode.MISTAKE
    sys.stdout.write(json.dumps(checked) + "\n")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
