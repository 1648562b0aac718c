"""What every test has: properties are searched without a clock, and launches are recorded in a folder of the tests."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# A deadline, or the check that examples are made fast enough, would fail on a busy machine without a fault in the code.
# A folder of a test's own is shared by its examples; each makes its own file in it.
settings.register_profile(
    "no-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("no-clock")

# The records of launches; every process that a test starts inherits it.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="cockpit-tests-state-")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also run the tests that give more examples of a claim")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--thorough"):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.get_closest_marker("thorough") is None]
