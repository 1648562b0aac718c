"""`python -m engines.run STAGE_JSON`: one attempt of one stage, in a process of its own."""

from __future__ import annotations

import sys

from engines.host import host_main
from recipes.stages.registry import modules_of

if __name__ == "__main__":
    host_main(sys.argv, modules_of("engines.run"))
