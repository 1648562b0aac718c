"""Documents to tokens with all cores: parts of a text, the processes that encode them, and shards made of them."""
