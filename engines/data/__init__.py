"""Prepare stages: documents, token shards and questions; and the light readers of what they write."""
