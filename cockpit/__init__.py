"""Cockpit: the operator's command line, screens, supervision and planning."""
