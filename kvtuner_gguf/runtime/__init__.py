"""Find and drive the built llama.cpp. Never imports torch."""
