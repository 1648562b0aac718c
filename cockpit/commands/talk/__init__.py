"""Commands that show what models answer to a person."""
