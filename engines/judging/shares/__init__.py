"""Shares of counts: their intervals and tests, without numpy, for the process of the operator too."""
