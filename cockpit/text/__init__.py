"""Numbers, units, tables and safe text: the only place where numbers become text."""
