"""One file per stage kind: its fields, and its row in the registry. `registry.STAGE_KINDS` lists the rows."""
