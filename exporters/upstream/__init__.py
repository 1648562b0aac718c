"""llama.cpp's own converter: its scripts, the names of its tensors, and the proof of its files."""
