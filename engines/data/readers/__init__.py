"""Readers of conversational data as rows of messages: one file per container, one per shape of a row."""
