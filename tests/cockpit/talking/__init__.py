"""Tests of conversations with models."""
