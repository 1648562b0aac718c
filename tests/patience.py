"""How long a test waits before it calls something that does not happen a failure.

It bounds a hang and measures nothing: it is far above what a machine needs that is busy with a dozen other processes.
"""

from __future__ import annotations

PATIENCE_S = 300.0
