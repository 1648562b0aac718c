"""What a run still has to do: its resolved recipe, the facts in its journal, its outputs, and the next action."""
