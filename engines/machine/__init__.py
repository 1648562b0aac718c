"""What the machine has: the identity of its cards, and memory that its system gets back."""
