"""A Metal device that is none: buffers, function constants, dispatches."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from tests.metal.library import locate
from tests.metal.lint import THREADGROUP_LIMIT


class Order(IntEnum):
    """Which lane goes first; ``RANDOM`` by a seed."""

    FORWARD = 0
    REVERSE = 1
    RANDOM = 2


class Use(IntEnum):
    """Who may touch memory: nobody writes an input."""

    INPUT = 0
    OUTPUT = 1
    THREADGROUP = 2


class Fault(RuntimeError):
    """What a kernel did that a GPU would not forgive, with the lines of its source."""


class _Position(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


class _Rules(ctypes.Structure):
    _fields_ = [
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("strict", ctypes.c_bool),
        ("poison", ctypes.c_bool),
        ("skip_barrier", ctypes.c_int),
    ]


class _Dispatch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("pointers", ctypes.POINTER(ctypes.c_void_p)),
        ("n_pointers", ctypes.c_uint),
        ("grid", _Position),
        ("threads", _Position),
        ("rules", _Rules),
    ]


@dataclass(frozen=True)
class Rules:
    """How lanes run: their order, its seed, whether barriers alone order memory (``strict``), whether lanes past a
    shuffle's end get garbage (``poison``), the line of a barrier to leave out (0: none)."""

    order: Order = Order.FORWARD
    seed: int = 1
    strict: bool = False
    poison: bool = True
    skip_barrier: int = 0


class Device:
    """Runs the kernels of one library, a dispatch at a time."""

    def __init__(self, library: Path, rules: Rules | None = None) -> None:
        self.path = library
        self.rules = rules or Rules()
        self._library = ctypes.CDLL(str(library))
        self._library.emulator_allocate.restype = ctypes.c_void_p
        self._library.emulator_allocate.argtypes = [ctypes.c_size_t, ctypes.c_int]
        self._library.emulator_set_constant.argtypes = [ctypes.c_int, ctypes.c_long]
        self._library.emulator_dispatch.restype = ctypes.c_char_p

    def run(
        self,
        kernel: str,
        buffers: Sequence[ctypes.Structure | np.ndarray],
        outputs: Sequence[np.ndarray],
        grid: Sequence[int],
        threads: Sequence[int],
        *,
        constants: Mapping[int, int] | None = None,
        threadgroup_bytes: Sequence[int] = (),
    ) -> None:
        """Runs ``kernel`` over ``grid`` threadgroups of ``threads``; what it wrote is copied into ``outputs``.

        ``buffers`` are its buffers in order; those that are among ``outputs`` may be written, from what they hold.
        Raises `Fault`.
        """
        if sum(threadgroup_bytes) > THREADGROUP_LIMIT:
            raise Fault(f"{kernel}: {sum(threadgroup_bytes)} bytes of threadgroup memory")
        self._library.emulator_clear()
        for number, value in (constants or {}).items():
            self._library.emulator_set_constant(number, value)
        written = {id(output) for output in outputs}
        pointers = [self._copy_in(buffer, id(buffer) in written) for buffer in buffers]
        pointers += [self._allocate(size, Use.THREADGROUP) for size in threadgroup_bytes]
        self._dispatch(kernel, pointers, _Position(*grid), _Position(*threads))
        for buffer, pointer in zip(buffers, pointers, strict=False):
            if isinstance(buffer, np.ndarray) and id(buffer) in written:
                ctypes.memmove(buffer.ctypes.data, pointer, buffer.nbytes)

    def _allocate(self, size: int, use: Use) -> int:
        pointer = self._library.emulator_allocate(size, use)
        if not pointer:
            raise MemoryError(f"{size} bytes for the emulator")
        return pointer

    def _copy_in(self, buffer: ctypes.Structure | np.ndarray, writable: bool) -> int:
        data = buffer.tobytes() if isinstance(buffer, np.ndarray) else bytes(buffer)
        pointer = self._allocate(len(data), Use.OUTPUT if writable else Use.INPUT)
        ctypes.memmove(pointer, data, len(data))
        return pointer

    def _dispatch(self, kernel: str, pointers: list[int], grid: _Position, threads: _Position) -> None:
        rules = self.rules
        dispatch = _Dispatch(
            kernel.encode(),
            (ctypes.c_void_p * len(pointers))(*pointers),
            len(pointers),
            grid,
            threads,
            _Rules(rules.order, rules.seed, rules.strict, rules.poison, rules.skip_barrier),
        )
        failure = self._library.emulator_dispatch(ctypes.byref(dispatch))
        if failure is not None:
            raise Fault(f"{kernel}: {locate(self.path, failure.decode())}")
