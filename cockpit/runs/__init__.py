"""Everything that is read from a run's files: records, state, lists, playback, verification."""
