"""KVTuner for llama.cpp: per-layer K and V cache types, carried in the GGUF."""

__version__ = "0.1.0"
