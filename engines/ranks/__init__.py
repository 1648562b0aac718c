"""Processes that train one model together: their exchange, their shares of the data, and where its weights are."""
