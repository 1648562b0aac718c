"""`python -m exporters.run STAGE_JSON`: runs one attempt of a merge or an export stage in its own process."""

from __future__ import annotations

import sys

from engines.host import host_main
from recipes.stages.registry import modules_of

if __name__ == "__main__":
    host_main(sys.argv, modules_of("exporters.run"))
