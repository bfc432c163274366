"""The torch reference: float32, loaded from the GGUF itself."""
