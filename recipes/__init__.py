"""The recipe format: schema, loader, overrides and edits, and the shipped recipes."""
