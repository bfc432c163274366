"""Nodes of a graph that the built llama.cpp computes, as its evaluation callback hands them over.

Source: ``struct ggml_tensor`` in ``ggml/include/ggml.h`` at the pinned base, whose first fields are laid out here.
"""

from __future__ import annotations

import ctypes
import importlib
from functools import cached_property

import numpy as np

from kvtuner_gguf.errors import KvtunerError

_DTYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float16), 26: np.dtype(np.int32)}


class _Tensor(ctypes.Structure):
    pass


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.POINTER(_Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


class Library:
    """The functions of ggml that nodes need."""

    def __init__(self) -> None:
        ggml = importlib.import_module("llama_cpp._ggml").libggml
        self._op_name, self._get = ggml.ggml_op_name, ggml.ggml_backend_tensor_get
        self._op_name.argtypes, self._op_name.restype = [ctypes.c_int], ctypes.c_char_p
        self._get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._get.restype = None
        self._names: dict[int, str] = {}

    def op_name(self, op: int) -> str:
        if op not in self._names:
            self._names[op] = self._op_name(op).decode()
        return self._names[op]

    def read(self, address: int, n_bytes: int) -> np.ndarray:
        """The first bytes of a tensor, wherever it lies."""
        found = np.empty(n_bytes, np.uint8)
        self._get(address, found.ctypes.data, 0, n_bytes)
        return found


class Node:
    """The tensor at ``address``, valid while the graph is."""

    def __init__(self, library: Library, address: int) -> None:
        self._library, self._address = library, address
        self._tensor = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents

    @property
    def name(self) -> str:
        return self._tensor.name.decode(errors="replace")

    @cached_property
    def op(self) -> str:
        """What computes it, such as ``FLASH_ATTN_EXT``."""
        return self._library.op_name(self._tensor.op)

    def source(self, i: int) -> Node | None:
        """Its ``i``-th operand."""
        return self._of(self._tensor.src[i])

    @property
    def storage(self) -> Node:
        """The tensor that it is a view of, or itself."""
        node, viewed = self, self._of(self._tensor.view_src)
        while viewed is not None:
            node, viewed = viewed, viewed._of(viewed._tensor.view_src)
        return node

    def _of(self, pointer: ctypes._Pointer) -> Node | None:
        return Node(self._library, ctypes.addressof(pointer.contents)) if pointer else None

    def ints(self) -> np.ndarray:
        """The parameters of `op`, int32."""
        return np.array(self._tensor.op_params, np.int32)

    def floats(self) -> np.ndarray:
        """The same bits as float32."""
        return self.ints().view(np.float32)

    def array(self) -> np.ndarray:
        """What it holds, a copy, slowest dimension first.

        Raises `KvtunerError` for other types than f32, f16 and i32.
        """
        tensor = self._tensor
        dtype = _DTYPES.get(tensor.type)
        if dtype is None:
            raise KvtunerError(
                f"the node {self.name} of the graph has the type {tensor.type}: no values are read of it"
            )
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        if 0 in shape:
            return np.empty(shape, dtype)
        extent = dtype.itemsize + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        raw = self._library.read(self._address, extent)
        return np.ndarray(shape, dtype, raw.data, 0, strides)
