"""llama.cpp: its kernels and its inference, each native call in a worker process of its own."""
