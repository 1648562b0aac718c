"""Keys, colours and glyphs."""
