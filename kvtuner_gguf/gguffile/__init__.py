"""Read and write plans in GGUF files. Never imports torch."""
