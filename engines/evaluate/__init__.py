"""The evaluate stage: token-weighted loss and perplexity on held-out data, and greedy answers."""
