"""The merge and export stages."""
