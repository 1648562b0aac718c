"""Tests of words whose ids are known."""
