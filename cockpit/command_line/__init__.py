"""The form of the command line: parser, help pages, shared arguments and shell completion. It imports no command."""
