"""What holds a run together: launch, supervisor, scheduling, processes, sampler, relay."""
