"""What every test has: properties are searched without a clock, launches are recorded in a folder of the tests, and the
coverage of its first example is measured."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.stage_context import close_writers

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


_MEASURED: set[str] = set()
"""Tests of which an example ran in this process."""
_PROCESSES = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
"""Python processes with one of these variables measure their lines too."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure the lines that the first example of a test reaches: the others take the same ways, and measuring makes
    plain Python three times as slow. What is not measured counts as not reached."""
    test = item.nodeid.partition("[")[0]
    tracer = sys.gettrace() if test in _MEASURED else None
    _MEASURED.add(test)
    if tracer is None:
        return (yield)
    of_threads = threading.gettrace()
    inherited = {name: os.environ.pop(name) for name in _PROCESSES if name in os.environ}
    # Not by Coverage.stop and start: each start would prepare forks once more, and a fork after many takes minutes.
    sys.settrace(None)
    threading.settrace(None)
    try:
        return (yield)
    finally:
        threading.settrace(of_threads)
        sys.settrace(tracer)
        os.environ.update(inherited)


@pytest.fixture(scope="module", autouse=True)
def closed_writers() -> Iterator[None]:
    """No journal that a module's tests have opened stays open after it."""
    yield
    close_writers()
