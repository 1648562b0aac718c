"""What every test has: properties are searched without a clock, and launches are recorded in a folder of the tests."""

from __future__ import annotations

import os
import tempfile

from hypothesis import HealthCheck, settings

# A deadline, or the check that examples are made fast enough, would fail on a busy machine without a fault in the code.
# A folder of a test's own is shared by its examples; each makes its own file in it.
settings.register_profile(
    "no-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("no-clock")

# The records of launches; every process that a test starts inherits it.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="cockpit-tests-state-")
