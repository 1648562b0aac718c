"""The parser, the help pages, shared arguments and shell completion; nothing here imports a command."""
