"""Keys, colours, glyphs and notices of all screens."""
