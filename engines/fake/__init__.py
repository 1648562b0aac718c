"""An engine with no model: it drives the same events as a real one."""
