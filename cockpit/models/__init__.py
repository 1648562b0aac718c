"""Models on this machine: what they are, what can be done with each, and their download from a hub."""
