"""Labels that are proven: conversations as ids and labels, each row compared with its own content."""
