"""One module for each screen, its texts and its sources."""
