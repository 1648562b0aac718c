"""Starting work on a run: launch, resume, adoption and requests, for commands, forms and keys."""
