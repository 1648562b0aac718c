"""`python -m exporters.run STAGE_JSON`: one attempt of a merge or an export, in a process of its own."""

from __future__ import annotations

import sys

from engines.host import host_main

STAGE_MODULES = {"merge": "exporters.stages.merge_stage", "export": "exporters.stages.export_stage"}
"""Names only: an exporter's module is imported when its stage runs, in its own process."""

if __name__ == "__main__":
    host_main(sys.argv, STAGE_MODULES)
