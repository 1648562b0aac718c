"""Models with ternary weights."""
