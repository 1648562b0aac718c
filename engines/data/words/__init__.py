"""The ids of texts from those of their words: where words begin, and which are known."""
