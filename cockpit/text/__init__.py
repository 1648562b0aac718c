"""Numbers, units, tables and safe text: the only place that makes text of numbers."""
