"""The product tried on a machine with one NVIDIA GPU, in a visit of a few minutes. What was found: bench/gpu.md."""
