"""Recipes of one stage, created by a button or a command."""
