"""What one conversation may cost a chat template."""

from __future__ import annotations

CPU_SECONDS = 5.0
"""Processor time; real templates take less than a millisecond."""
MEMORY_BYTES = 512 * 1024 * 1024
"""Memory beyond the worker's own."""
TEXT_CHARACTERS = 16 * 1024 * 1024
"""Length of the rendered text."""
