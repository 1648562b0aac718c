"""The curves of a run as files: every value as CSV, and charts as SVG and PNG, drawn without other packages."""
