"""Whether a stage is done: its last success was made from what the run has now, and its output is complete on disk."""

from __future__ import annotations

from collections.abc import Callable

from cockpit.schedule.facts import RunFacts
from cockpit.schedule.resolved_recipe import RunRecipe
from engines.artifacts.manifest import problems_against
from engines.run_dir import RunDir


class Outputs:
    """The outputs of one run's stages. Each is hashed once, until a later success replaces it."""

    def __init__(
        self,
        run: RunDir,
        plan: RunRecipe,
        facts: RunFacts,
        report: Callable[[str, list[str]], None] = lambda _name, _problems: None,
    ) -> None:
        """`facts` may grow later. `report` gets a stage's name and what is wrong with the files of its output."""
        self._run = run
        self._plan = plan
        self._facts = facts
        self._report = report
        self._verified: dict[str, str] = {}

    def is_done(self, name: str) -> bool:
        """Whether the stage needs no attempt: its fingerprint is the present one, and every file has its hash."""
        last = self._facts.stage(name).last_success
        if last is None or last.fingerprint != self._plan.fingerprint(self._run, name):
            return False
        if self._verified.get(name) == last.manifest_sha256:
            return True
        problems = problems_against(self._run.out(name), last.manifest_sha256)
        if problems:
            self._report(name, problems)
            return False
        self._verified[name] = last.manifest_sha256
        return True
