"""llama.cpp: its kernels and its inference; all native calls run in worker processes."""
