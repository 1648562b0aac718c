"""One screen per file, and what it reads."""
