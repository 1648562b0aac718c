"""One widget per file; each draws a state and keeps no second truth."""
