"""The offline stage: from a calibration text to a plan. What measures imports torch, nothing llama_cpp."""
