"""Files on disk: read with limits, replaced whole, fetched by their pins."""
