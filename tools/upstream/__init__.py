"""Upstream's sources: their pins, our patches on them, and moving the patches to other sources."""
