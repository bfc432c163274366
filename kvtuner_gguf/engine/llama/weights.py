"""Products of quantized weights that lose little, for measuring small losses.

They round their other operand to 8 bits: two runs that should be alike differ by a KLD of 0.003 (SmolLM2-135M in Q4_1
on a CPU), more than most layers cost. With f16 weights it is 2e-6; f32 weights, with 5e-7, find no better plans. So on
a CPU a copy of the model has f16 weights. CUDA and Metal multiply weights as they are as floats, in no more memory.
"""

from __future__ import annotations

import ctypes
import math
import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gguf import GGMLQuantizationType, LlamaFileType

from kvtuner_gguf.engine.llama.native import patched_llama_cpp
from kvtuner_gguf.engine.llama.nativelog import captured_log
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.reader import GgufHeader

# what a model is run with; a copy of quantized weights loses less
AS_IN_FILE, COPIED, MULTIPLIED, QUANTIZED = "as in the file", "f16", "multiplied as floats", "quantized"
_F16_BYTES = 2
# products of others, bf16 among them, round their other operand to 8 bits
_FLOAT_TYPES = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
# back ends that can multiply quantized weights as floats, and what asks CUDA for it; Metal does in any case
_OF_FLOATS = ("cuda", "metal")
_ASKS_FOR_FLOATS = "KVTUNER_FLOAT_PRODUCTS"
# of the memory that is free, at most so much for the copy
_SHARE = 0.6


def available_memory() -> int:
    """Bytes of memory that a process can have without swapping."""
    import psutil  # here, since it comes with the extra for tuning alone

    return psutil.virtual_memory().available


def n_weights(headers: Sequence[GgufHeader]) -> int:
    """Values of all tensors."""
    return sum(math.prod(tensor.shape) for header in headers for tensor in header.tensors)


def weights_for(headers: Sequence[GgufHeader], device: str, before: object = None) -> str:
    """What products are made of on ``device``: `AS_IN_FILE` where all weights are floats.

    Of others `MULTIPLIED` where the device can do it; else `COPIED` where they have room in memory as f16, or
    `QUANTIZED`. ``before``: which of the latter two a tuning that goes on has, whatever the memory.
    """
    if all(tensor.ggml_type in _FLOAT_TYPES for header in headers for tensor in header.tensors):
        return AS_IN_FILE
    if device in _OF_FLOATS:
        return MULTIPLIED
    if before in (COPIED, QUANTIZED):
        return str(before)
    return COPIED if _F16_BYTES * n_weights(headers) <= _SHARE * available_memory() else QUANTIZED


@contextmanager
def float_products() -> Generator[None]:
    """Quantized weights are multiplied as floats until the block ends, where the device can do it."""
    before = os.environ.get(_ASKS_FOR_FLOATS)
    os.environ[_ASKS_FOR_FLOATS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ASKS_FOR_FLOATS]
        else:
            os.environ[_ASKS_FOR_FLOATS] = before


@contextmanager
def _temporary_file() -> Generator[Path]:
    """A file that is gone when the block ends; where the system lets files without a name have a path, at any end."""
    if Path("/proc/self/fd").is_dir():
        with tempfile.TemporaryFile() as file:
            yield Path(f"/proc/self/fd/{file.fileno()}")
        return
    with tempfile.TemporaryDirectory(prefix="kvtuner-") as folder:
        yield Path(folder) / "f16.gguf"


@contextmanager
def f16_copy(path: Path, n_threads: int) -> Generator[Path]:
    """The model at ``path``, split or whole, with f16 weights, for as long as the block runs.

    Raises `KvtunerError` where there is no room for it, or llama.cpp cannot convert it.
    """
    lib = patched_llama_cpp()
    with _temporary_file() as copy:
        params = lib.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize, params.nthread = LlamaFileType.MOSTLY_F16, True, n_threads
        with captured_log(lib) as log:
            if lib.llama_model_quantize(os.fsencode(path), os.fsencode(copy), ctypes.byref(params)):
                raise KvtunerError(
                    f"{path}: no copy with f16 weights can be made ({log.reason()}): give TMPDIR more room, or tune a "
                    "GGUF with f16 weights"
                )
        yield copy
