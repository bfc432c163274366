"""The built llama.cpp, found and driven in this process. Never imports torch."""
