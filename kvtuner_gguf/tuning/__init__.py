"""The offline stage: from a calibration text to a plan. Imports torch, never llama_cpp."""
