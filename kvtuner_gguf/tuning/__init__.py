"""The offline stage, on a torch reference model. The only importer of torch."""
