"""The process that holds a run together: supervisor, engine processes, sampler, relay, stop ladder."""
