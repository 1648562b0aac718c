"""One module for each widget; a widget draws a state that others keep."""
