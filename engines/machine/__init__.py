"""What the machine has: the identity of its cards."""
