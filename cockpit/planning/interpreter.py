"""The interpreter on this machine that looks at a stage's data and packages."""

from __future__ import annotations

import sys

from recipes.stages.fields import StageFields
from recipes.stages.launch.fields import launch_of


def interpreter_here(stage: StageFields) -> str:
    """The stage's own interpreter, or Cockpit's: also for a stage in a container, whose interpreter is not here."""
    return sys.executable if launch_of(stage).container else stage.python or sys.executable
