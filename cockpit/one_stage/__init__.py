"""Recipes of one stage, made by a button or a command."""
