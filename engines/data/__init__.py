"""Prepare stages: documents, token shards and questions; and light readers of their output."""
