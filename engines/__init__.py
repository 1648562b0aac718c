"""Cockpit's engines: what all engines share (files here, light) and the engines themselves (folders, heavy)."""
