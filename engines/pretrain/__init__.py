"""Pretraining from scratch on token shards."""
