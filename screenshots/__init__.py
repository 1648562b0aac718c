"""Pictures of every screen, drawn from recorded runs."""
