"""Commands about models: the list of those on this machine, and their download."""
