"""The execution of a run: launch, supervisor, scheduling, processes, sampler, relay."""
