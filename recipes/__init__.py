"""Cockpit's recipes: what an operator may ask for, and the recipes it ships."""
