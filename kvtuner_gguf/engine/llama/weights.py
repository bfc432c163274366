"""A copy of a model with float weights, for measuring small losses.

Products of quantized weights round their other operand to 8 bits: two runs that should be alike differ by a KLD of 0.003
(SmolLM2-135M in Q4_1 on a CPU), more than most layers cost. With f16 weights it is 2e-6, with f32 weights 5e-7.
"""

from __future__ import annotations

import ctypes
import math
import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvtuner_gguf.engine.llama.native import patched_llama_cpp
from kvtuner_gguf.engine.llama.nativelog import captured_log
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.reader import GgufHeader

# llama_ftype, and bytes of a weight; the better first
_FTYPES = {"f32": (0, 4), "f16": (1, 2)}
# ggml types whose products round nothing: f32, f16, bf16
_FLOAT_TYPES = (0, 1, 30)
# of the memory that is free, at most so much for the copy
_SHARE = 0.6


def has_float_weights(headers: Sequence[GgufHeader]) -> bool:
    """Whether all tensors have float types."""
    return all(tensor.ggml_type in _FLOAT_TYPES for header in headers for tensor in header.tensors)


def available_memory() -> int:
    """Bytes of memory that are free, or all of it where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 1 << 62


def copied_type(headers: Sequence[GgufHeader]) -> str | None:
    """The best float type that all weights have room in memory as; None where none has, or they are floats already."""
    n_values = sum(math.prod(tensor.shape) for header in headers for tensor in header.tensors)
    fitting = (name for name, (_, size) in _FTYPES.items() if size * n_values <= _SHARE * available_memory())
    return None if has_float_weights(headers) else next(fitting, None)


@contextmanager
def float_copy(path: Path, name: str, n_threads: int) -> Generator[Path]:
    """The model at ``path``, split or whole, with weights of the type ``name``, for as long as the block runs.

    Raises `KvtunerError` where there is no room for it, or llama.cpp cannot convert it.
    """
    lib = patched_llama_cpp()
    with tempfile.TemporaryDirectory(prefix="kvtuner-") as folder:
        copy = Path(folder) / f"{name}.gguf"
        params = lib.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize, params.nthread = _FTYPES[name][0], True, n_threads
        with captured_log(lib, verbose=False) as log:
            if lib.llama_model_quantize(os.fsencode(path), os.fsencode(copy), ctypes.byref(params)):
                raise KvtunerError(
                    f"{path}: no copy with {name} weights can be made ({log.reason()}): give TMPDIR more room, or tune a "
                    "GGUF with f16 weights"
                )
        yield copy
