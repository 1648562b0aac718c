"""Provenance: whether a run was launched by this user on this machine, and which processes belong to a run."""
