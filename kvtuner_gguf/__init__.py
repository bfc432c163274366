"""KVTuner for llama.cpp: per-layer K and V cache types, carried in the GGUF.

What is public stands in `__all__`; each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtuner_gguf.api import evaluate, tune
    from kvtuner_gguf.errors import KvtunerError
    from kvtuner_gguf.files.configs import CONFIGS
    from kvtuner_gguf.gguffile.annotate import annotate
    from kvtuner_gguf.plan.pairs import Pair
    from kvtuner_gguf.plan.plan import Plan

__all__ = ["CONFIGS", "KvtunerError", "Pair", "Plan", "annotate", "evaluate", "tune"]
__version__ = "0.1.0"

_HOMES = {
    "CONFIGS": "files.configs",
    "KvtunerError": "errors",
    "Pair": "plan.pairs",
    "Plan": "plan.plan",
    "annotate": "gguffile.annotate",
    "evaluate": "api",
    "tune": "api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
