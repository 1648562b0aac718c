"""One widget a file: each draws a state and keeps no second truth."""
