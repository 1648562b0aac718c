"""The processes of the exporters: jobs, checks of disk and memory, and foreign programs."""
