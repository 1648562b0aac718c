"""The command that renders scripts for other programs."""
