"""Is a file the model? Audit, parity, fixture and foreign runners."""
