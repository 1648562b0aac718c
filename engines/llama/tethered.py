"""`python -m engines.llama.tethered PROGRAM ARGS…`: run another program that ends when its parent process ends.

The parent-death signal stays set across exec (prctl(2), PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os
import sys

from engines.llama.library import die_with_parent

CANNOT_START = 127

if __name__ == "__main__":
    die_with_parent()
    try:
        os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - a program the operator named
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]} cannot be started: {error.strerror}\n")
        sys.exit(CANNOT_START)
