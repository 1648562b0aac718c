"""Playing a run back: its recorded events and a playhead over them."""
