"""Looks at data as a stage will read it, before it runs: counts, defects, and single rows. A process of its own."""
