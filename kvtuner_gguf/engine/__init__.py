"""What runs a model: the built llama.cpp or the torch reference."""

# what `opening.open_engine` opens; here, since a command line that names them needs nothing else
ENGINES = ("auto", "torch", "llama")
