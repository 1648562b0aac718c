"""The recipe form: rows with values and problems, undo, saving."""
