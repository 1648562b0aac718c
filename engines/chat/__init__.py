"""Chat templates: rendered in a separate process, because a template is a program by the author of a model."""
