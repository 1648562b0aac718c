"""File names in the folders of data that a prepare stage writes; engines, exporters and the identity of inputs use
them."""

METADATA = "metadata.json"
"""In a text or a messages folder: how it was made."""
TOKENS_JSON = "tokens.json"
"""In a tokens folder: its shards."""
