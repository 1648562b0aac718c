"""Following a run and reporting on it without a screen: lines, JSON, the report."""
