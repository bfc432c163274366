"""Caches judged against the f16 cache: by llama.cpp or by torch, on chunks of a text or on tasks."""
