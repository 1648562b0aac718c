"""Conversations with models: the process that answers, the turns, saved prompts, votes between two answers."""
