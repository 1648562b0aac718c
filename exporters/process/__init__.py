"""What a process of an exporter is: its job, its room on the machine, and the foreign programs that it runs."""
