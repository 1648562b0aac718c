"""Cockpit's engines: the words every engine speaks (files here, light) and the engines themselves (folders, heavy)."""
