"""Following and reporting on a terminal without screens."""
