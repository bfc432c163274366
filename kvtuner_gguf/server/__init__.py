"""A ``llama-server`` of the built llama.cpp, and what it says of its caches. Never imports torch."""
