"""What the torch reference needs installed, and how torch then allocates and computes."""

from __future__ import annotations

import os
from importlib.util import find_spec

from kvtuner_gguf.errors import KvtunerError

NEEDED = ("accelerate", "optuna", "psutil", "sklearn", "torch", "transformers")
# of <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def check_installed() -> None:
    """Raise `KvtunerError` where a package that `kvtuner_gguf.tuning` needs is not there; imports none."""
    missing = next((name for name in NEEDED if find_spec(name) is None), None)
    if missing is not None:
        raise KvtunerError(f"tuning needs {missing}: pip install 'kvtuner-gguf[tune]'")


def import_torch(threads: int | None) -> None:
    """Raise `KvtunerError` where what `kvtuner_gguf.tuning` needs is not installed; set torch's threads."""
    check_installed()
    try:
        import accelerate  # noqa: F401
        import optuna  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as err:
        raise KvtunerError(f"tuning needs {err.name}: pip install 'kvtuner-gguf[tune]'") from err
    _keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(max(1, threads))


def _keep_freed_memory() -> None:
    """Have glibc, where it is the C library, give big freed blocks to the next tensor instead of the kernel.

    Each layer would fault in its pages anew: about a tenth of a forward's time on the CPU.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
