"""`python -m engines.run STAGE_JSON`: one attempt of one stage, in a process of its own."""

from __future__ import annotations

import sys

from engines.host import host_main

STAGE_MODULES = {
    "prepare": "engines.data.stage",
    "tokenizer": "engines.tokenizer.stage",
    "pretrain": "engines.pretrain.stage",
    "finetune": "engines.finetune.stage",
    "evaluate": "engines.evaluate.stage",
    "fake": "engines.fake.stage",
}
"""Names only: an engine's module is imported when its stage runs, in its own process."""

if __name__ == "__main__":
    host_main(sys.argv, STAGE_MODULES)
