"""The plans that were searched and measured, the paper's tables, and the schema of a plan."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
"""A folder of JSON files; its ``README.md`` says what each plan loses. In the sources it is a link to ``configs/``."""
