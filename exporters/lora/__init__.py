"""Adapters, and their sum with a base."""
