"""Dialogs over a screen: questions, choices, help and the command palette."""
