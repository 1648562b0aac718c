"""An engine without a model: it writes the same events as a real one."""
