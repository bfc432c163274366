"""Rows into and out of made-up caches: our kernels on the emulator, and what they should store."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from kvtuner_gguf.plan.cachetypes import CACHE_TYPES, CacheType
from kvtuner_gguf.server.llama_server import find_tool
from tests.metal.device import Device, Rules
from tests.metal.library import OURS, build
from tests.metal.structs import our_arguments

CELLS = 32
BLOCKS = 3  # of positions, each with its center
SIMDGROUPS = 4
LANES = 32
LONG = 512  # values that upstream transforms by another kernel
PLAIN = {"f32": "float", "f16": "half", "bf16": "bfloat"}


@dataclass(frozen=True)
class Case:
    """One write of ``tokens`` rows of ``heads`` heads: ``rotation`` values are rotated together, 0 for none.

    ``center`` is "", "one" for all rows or "blocks", for each block of positions another one; ``exact`` is the type
    in which rows are stored beside the cache, too.
    """

    kind: str
    head_size: int = 128
    heads: int = 2
    tokens: int = 5
    rotation: int = 0
    center: str = ""
    scaled: bool = False
    exact: str = ""
    of_values: bool = False

    @property
    def type(self) -> CacheType:
        return CACHE_TYPES[self.kind]

    @property
    def width(self) -> int:
        return self.head_size * self.heads

    @property
    def piece(self) -> int:
        """The values of a row that a simdgroup takes."""
        return self.rotation or max(32, self.type.block_size)


@dataclass
class Write:
    """The tensors of a `Case`."""

    case: Case
    rows: np.ndarray = field(init=False)
    factors: np.ndarray = field(init=False)
    centers: np.ndarray = field(init=False)
    blocks: np.ndarray = field(init=False)
    cells: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        case, rng = self.case, np.random.default_rng(11)
        shape = (case.tokens, case.width)
        outliers = np.where(rng.random(shape) < 1 / 16, 20, 1)
        self.rows = (rng.standard_normal(shape) * outliers).astype(np.float32)
        self.factors = rng.uniform(0.5, 2, case.width).astype(np.float32)
        self.centers = rng.standard_normal((BLOCKS, case.width)).astype(np.float16)
        self.blocks = rng.integers(0, BLOCKS, case.tokens).astype(np.int32)
        self.cells = (np.arange(case.tokens, dtype=np.int64) * 7 + 3) % CELLS

    def values(self) -> np.ndarray:
        """The rows as they are before they are converted, in float32 and the kernel's order of additions."""
        case = self.case
        x = self.rows * self.factors if case.scaled else self.rows
        if case.rotation:
            x = _rotated(x * np.float32(1 / np.sqrt(np.float32(case.rotation))), case.rotation)
        if case.center == "one":
            x = x - self.centers[0].astype(np.float32)
        if case.center == "blocks":
            x = x - self.centers[self.blocks].astype(np.float32)
        return x

    def run(self, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of the cache and of the rows beside it, both zero before. Raises `Fault`."""
        case = self.case
        cache = np.zeros((CELLS, case.type.row_bytes(case.width)), np.uint8)
        exact = np.zeros((CELLS, CACHE_TYPES[case.exact or "f16"].row_bytes(case.width)), np.uint8)
        center = self.centers[0].astype(np.float32) if case.center == "one" else self.centers
        pieces = case.width // case.piece
        args = our_arguments(
            "kvtuner-metal-args.h",
            "kvtuner_metal_write_args",
            pieces_per_row=pieces,
            n_rows=case.tokens,
            row_stride=(4 * case.width, 0, 0),
            index_stride=(8, 0, 0),
            n_index=(1, 1),
            is_wide=1,
            cache_stride=(cache.shape[1], 0, 0),
            is_of_values=case.of_values,
            is_rotated=case.rotation > 0,
            scale=float(1 / np.sqrt(np.float32(case.rotation))) if case.rotation else 1.0,
            has_factors=case.scaled,
            has_center=case.center == "one",
            has_centers=case.center == "blocks",
            has_exact=bool(case.exact),
            exact_is_of_values=case.of_values,
            exact_stride=exact.shape[1],
        )
        buffers = [args, self.rows, self.cells, cache, self.factors, center, self.blocks, self.cells, exact]
        groups = -(-case.tokens * pieces // SIMDGROUPS)
        library = write_library(case.kind, case.exact or "f16", case.piece)
        Device(library, rules).run("kvtuner_write", buffers, [cache, exact], (groups, 1, 1), (LANES, SIMDGROUPS, 1))
        return cache, exact


def write_library(kind: str, exact: str, piece: int) -> Path:
    defines = {"KVTUNER_TO": metal_name(kind), "KVTUNER_EXACT": metal_name(exact), "KVTUNER_N": piece}
    return build(OURS[0] / "kvtuner-write.metal", ["kvtuner_write"], defines=defines)


def metal_name(kind: str) -> str:
    return PLAIN.get(kind, f"block_{kind}")


def stored(values: np.ndarray, kind: str, of_values: bool = False) -> np.ndarray:
    """The bytes of ``values`` [rows, n] by the reference code of the CPU."""
    if kind == "f32":
        return values.astype(np.float32).view(np.uint8)
    wanted = CACHE_TYPES[kind]
    made = np.zeros((values.shape[0], wanted.row_bytes(values.shape[1])), np.uint8)
    given = np.ascontiguousarray(values, np.float32)
    _conversion(wanted.ggml_type, of_values)(given.ctypes.data, made.ctypes.data, values.size)
    return made


@lru_cache
def _conversion(ggml_type: int, of_values: bool) -> ctypes._CFuncPtr:
    library = _library()
    library.kvtuner_from_float_ref.restype = ctypes.c_void_p
    address = library.kvtuner_from_float_ref(ggml_type, ctypes.c_bool(of_values))
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)


@lru_cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(find_tool("test-backend-ops").resolve().parent / "libggml-base.so"))


def _rotated(x: np.ndarray, n: int) -> np.ndarray:
    """Walsh-Hadamard transform of ``n`` values at a time, as upstream's Metal kernels round."""
    made = x.reshape(-1, n).copy()
    step = 1
    while step < n:
        pairs = made.reshape(-1, n // (2 * step), 2, step)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        total = high - low + 2 * low if step < LANES and n < LONG else low + high
        made = np.stack([total, low - high], 2).reshape(-1, n)
        step *= 2
    return made.reshape(x.shape)


THREADS = 128
KERNELS = ["kvtuner_get_rows", "kvtuner_copy_from", "kvtuner_copy_to"]


@dataclass(frozen=True)
class Blocks:
    """``rows`` of ``width`` values of type ``kind``, each with `GAP` bytes behind it, and of float type ``number``."""

    kind: str
    number: str = "f32"
    width: int = 192
    rows: int = 7
    GAP = 26 * 18  # whole blocks of each type of ours

    def get_rows(self, cache: np.ndarray, indices: np.ndarray, rules: Rules) -> np.ndarray:
        """The rows at ``indices`` of ``cache`` [rows, bytes] as floats."""
        made = np.full((indices.size, self.width), np.nan, np.float32)
        strides = {
            "from_stride": (cache.shape[1], 0, 0),
            "index_stride": (4, 0, 0),
            "to_stride": (4 * self.width, 0, 0),
        }
        args = our_arguments("kvtuner-metal-args.h", "kvtuner_metal_get_rows_args", n=self.width, **strides)
        self._run(KERNELS[0], [args, cache, indices, made], made, (indices.size, 1, 1), (THREADS, 1, 1), rules)
        return made

    def copy_from(self, cache: np.ndarray, rules: Rules) -> np.ndarray:
        """``cache`` [rows, bytes] as floats, turned: [width, rows]."""
        kind = np.float16 if self.number == "f16" else np.float32
        made = np.full((self.width, self.rows), np.nan, kind)
        size = made.itemsize
        turned = (size * self.rows, size, 0, 0)
        args = self._copy_args(self._strides(cache), turned)
        groups = -(-self.width * self.rows // THREADS)
        self._run(KERNELS[1], [args, cache, made], made, (groups, 1, 1), (THREADS, 1, 1), rules)
        return made

    def copy_to(self, values: np.ndarray, rules: Rules) -> np.ndarray:
        """``values`` [width, rows] as rows of blocks with gaps, zero before."""
        made = np.zeros((self.rows, CACHE_TYPES[self.kind].row_bytes(self.width) + self.GAP), np.uint8)
        turned = (4 * self.rows, 4, 0, 0)
        args = self._copy_args(turned, self._strides(made))
        groups = -(-self.width * self.rows // (SIMDGROUPS * CACHE_TYPES[self.kind].block_size))
        self._run(KERNELS[2], [args, values, made], made, (groups, 1, 1), (THREADS, 1, 1), rules)
        return made

    def _strides(self, cache: np.ndarray) -> tuple[int, ...]:
        return (CACHE_TYPES[self.kind].block_bytes, cache.shape[1], 0, 0)

    def _copy_args(self, from_stride: tuple[int, ...], to_stride: tuple[int, ...]) -> ctypes.Structure:
        ne = (self.width, self.rows, 1)
        strides = {"from_ne": ne, "from_stride": from_stride, "to_ne": ne, "to_stride": to_stride}
        return our_arguments("kvtuner-metal-args.h", "kvtuner_metal_copy_args", n=self.width * self.rows, **strides)

    def _run(
        self,
        kernel: str,
        buffers: list[ctypes.Structure | np.ndarray],
        output: np.ndarray,
        grid: tuple[int, int, int],
        threads: tuple[int, int, int],
        rules: Rules,
    ) -> None:
        defines = {
            "KVTUNER_BLOCK": metal_name(self.kind),
            "KVTUNER_LENGTH": CACHE_TYPES[self.kind].block_size,
            "KVTUNER_FLOAT": metal_name(self.number),
        }
        library = build(OURS[0] / "kvtuner-rows.metal", KERNELS, defines=defines)
        Device(library, rules).run(kernel, buffers, [output], grid, threads)
