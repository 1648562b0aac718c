"""Asks a model at an OpenAI-compatible URL to judge answers; only where the operator named one."""
