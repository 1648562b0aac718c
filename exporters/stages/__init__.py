"""The merge and export stages, which use the other rooms."""
