"""The command that judges whether a file may ship."""
