"""Which back end the built llama.cpp offers."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator

from kvtuner_gguf.plan.backends import DEFAULT_BACKEND

_GPUS = (1, 2)  # ggml_backend_dev_type: with memory of its own, or the host's
_OF_DEVICE = {"CUDA": "cuda", "MTL": "metal", "Metal": "metal", "Vulkan": "vulkan"}


def offered_backend() -> str:
    """That of the first GPU which the installed build knows, or the default one: there is no GPU, or no build."""
    for name in _gpu_names():
        for start, backend in _OF_DEVICE.items():
            if name.startswith(start):
                return backend
    return DEFAULT_BACKEND


def n_cuda() -> int:
    """How many GPUs the installed build finds for CUDA."""
    return sum(name.startswith("CUDA") for name in _gpu_names())


def _gpu_names() -> Iterator[str]:
    try:
        library = importlib.import_module("llama_cpp._ggml").libggml
        count, get = library.ggml_backend_dev_count, library.ggml_backend_dev_get
        kind, name = library.ggml_backend_dev_type, library.ggml_backend_dev_name
    except (ImportError, OSError, RuntimeError, AttributeError):
        return
    count.restype = ctypes.c_size_t
    get.argtypes, get.restype = [ctypes.c_size_t], ctypes.c_void_p
    kind.argtypes, kind.restype = [ctypes.c_void_p], ctypes.c_int
    name.argtypes, name.restype = [ctypes.c_void_p], ctypes.c_char_p
    devices = [get(i) for i in range(count())]
    yield from (name(device).decode() for device in devices if kind(device) in _GPUS)
