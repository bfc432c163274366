"""The tables of the KVTuner paper (arXiv 2502.04420, ICML 2025): read them, make plans of them."""
