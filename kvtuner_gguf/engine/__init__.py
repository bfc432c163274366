"""What runs a model: the built llama.cpp or the torch reference."""
