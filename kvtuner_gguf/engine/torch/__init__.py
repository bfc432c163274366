"""The torch reference. With `fakequant`, `rotation`, `cachemodel` and `tuning` the only importer of torch."""
