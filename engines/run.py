"""`python -m engines.run STAGE_JSON`: run one attempt of one stage."""

from __future__ import annotations

import sys

from engines.host import host_main
from recipes.stages.registry import modules_of

if __name__ == "__main__":
    host_main(sys.argv, modules_of("engines.run"))
