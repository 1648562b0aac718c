"""Following a run and reporting on it without screens: lines, JSON, the report."""
