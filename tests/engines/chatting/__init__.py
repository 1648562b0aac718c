"""Tests of chats with a model."""
