"""Other people's data as rows of messages: one file per container, one per shape of a row."""
