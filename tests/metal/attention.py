"""Upstream's attention kernels over made-up caches, dispatched as its host does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from tests.metal.cases import Case, Inputs
from tests.metal.device import Device, Rules
from tests.metal.library import UPSTREAM
from tests.metal.structs import arguments, constants

KERNELS = UPSTREAM / "ggml-metal" / "kernels"
HELPERS = ["kernel_flash_attn_ext_pad", "kernel_flash_attn_ext_blk", "kernel_flash_attn_ext_vec_reduce"]
SIMDGROUP = 32


@lru_cache
def numbers() -> Mapping[str, int]:
    return constants()


class Attention:
    """A `Case` on the emulator, with ``libraries`` by the stems of their files.

    ``kind`` is ``vec`` or ``matrix``; ``less_memory`` bytes of threadgroup memory are taken away.
    """

    def __init__(
        self, libraries: Mapping[str, Path], case: Case, kind: str, rules: Rules, *, less_memory: int = 0
    ) -> None:
        self.case, self.kind, self.less_memory = case, kind, less_memory
        self.inputs = Inputs(case)
        stem = f"fa_vec_{case.cache_type}" if kind == "vec" else f"fa_{case.cache_type}"
        self.device = Device(libraries[stem], rules)
        self.helpers = Device(libraries["fa_aux"], replace(rules, skip_barrier=0))
        self.row_bytes = self.inputs.k.shape[-1]
        self.block = numbers()["OP_FLASH_ATTN_EXT_VEC_NCPSG" if kind == "vec" else "OP_FLASH_ATTN_EXT_NCPSG"]

    def run(self) -> np.ndarray:
        """The result ``[rows, heads, head_size]``. Raises `Fault`."""
        return self._run_vec(self._pad()) if self.kind == "vec" else self._run_matrix(self._pad(), self._blocks())

    def _optional(self, given: bool, buffer: np.ndarray) -> np.ndarray:
        return buffer if given else self.inputs.q

    def _caches(self) -> dict[str, float]:
        case, row = self.case, self.row_bytes
        plane = row * case.tokens
        sides = {f"nb{side}1": row for side in (1, 2)} | {f"nb{side}2": plane for side in (1, 2)}
        return {
            "ne_12_2": case.kv_heads,
            "ne_12_3": 1,
            "nb13": plane * case.kv_heads,
            "nb23": plane * case.kv_heads,
            **sides,
        }

    def _masks(self) -> dict[str, float]:
        stride = 2 * self.case.tokens
        plane = stride * self.case.rows
        return {"ne31": self.case.rows, "ne32": 1, "ne33": 1, "nb31": stride, "nb32": plane, "nb33": plane}

    def _pad(self) -> np.ndarray:
        """The last tokens of caches and mask, filled up to a block; nothing is used where they fill one."""
        case, inputs, fc = self.case, self.inputs, numbers()["FC_FLASH_ATTN_EXT_PAD"]
        size = self.block * (2 * self.row_bytes * case.kv_heads + 2 * case.rows)
        pad = np.zeros(size, np.uint8)
        if case.tokens % self.block:
            args = arguments("flash_attn_ext_pad", ne11=case.tokens, **self._caches(), **self._masks())
            self.helpers.run(
                HELPERS[0],
                [args, inputs.k, inputs.v, self._optional(case.mask, inputs.mask), pad],
                [pad],
                (self.block, case.kv_heads, 1),
                (SIMDGROUP, 1, 1),
                constants={fc: case.mask, fc + 25: self.block},
            )
        return pad

    def _blocks(self) -> np.ndarray:
        """For each block of the mask whether it is empty, all zero or neither."""
        case, fc, queries = self.case, numbers()["FC_FLASH_ATTN_EXT_BLK"], numbers()["OP_FLASH_ATTN_EXT_NQPSG"]
        blocks = np.zeros((-(-case.rows // queries), -(-case.tokens // self.block)), np.uint8)
        if case.mask:
            args = arguments("flash_attn_ext_blk", ne01=case.rows, ne30=case.tokens, **self._masks())
            grid = (blocks.shape[1], blocks.shape[0], 1)
            values = {fc + 24: queries, fc + 25: self.block}
            buffers = [args, self.inputs.mask, blocks]
            self.helpers.run(HELPERS[1], buffers, [blocks], grid, (SIMDGROUP, 1, 1), constants=values)
        return blocks

    def _arguments(self, name: str, **more: float) -> object:
        case, row = self.case, 4 * self.case.head_size
        stride = self.row_bytes // {"f16": 2, "q8_0": 34, "q4_0": 18}[case.cache_type]
        return arguments(
            name,
            **{"ne01": case.rows, "ne02": case.heads, "ne03": 1, "nb01": row, "nb02": row * case.rows},
            **{"nb03": row * case.rows * case.heads, "ne11": case.tokens, "ns10": stride, "ns20": stride},
            **{"ne1": case.heads, "ne2": case.rows, "ne3": 1, "max_bias": 0, "m0": 0, "m1": 0, "n_head_log2": 1},
            **{"scale": self._scale(), "logit_softcap": case.soft_cap, **self._caches(), **self._masks(), **more},
        )

    def _scale(self) -> float:
        return 1 / np.sqrt(self.case.head_size) / (self.case.soft_cap or 1)

    def _constants(self, first: int, **more: int) -> dict[int, int]:
        case = self.case
        stride = self.row_bytes // {"f16": 2, "q8_0": 34, "q4_0": 18}[case.cache_type]
        flags = [case.mask, case.sinks, False, case.soft_cap > 0, case.tokens % self.block != 0]
        return {first + i: int(flag) for i, flag in enumerate(flags)} | {first + 20: stride, first + 21: stride}

    def _run_vec(self, pad: np.ndarray) -> np.ndarray:
        case, inputs, first, size = self.case, self.inputs, numbers()["FC_FLASH_ATTN_EXT_VEC"], self.case.head_size
        simdgroups = 1
        while 2 * case.threadgroups * simdgroups * self.block < case.tokens and simdgroups < 4:
            simdgroups *= 2
        padded = -(-size // 128) * 128
        memory = (3 * padded + 4 * self.block) * case.queries * simdgroups * 2 - self.less_memory
        result = np.full((case.rows, case.heads, size), np.nan, np.float32)
        partial = np.full(case.rows * case.heads * case.threadgroups * (size + 2), np.nan, np.float32)
        output = result if case.threadgroups == 1 else partial
        mask, sinks = self._optional(case.mask, inputs.mask), self._optional(case.sinks, inputs.sinks)
        args = self._arguments("flash_attn_ext_vec", n_kv_max_padded=0)
        self.device.run(
            case.kernel("vec"),
            [args, inputs.q, inputs.k, inputs.v, mask, sinks, pad, output, inputs.q],
            [output],
            (-(-case.rows // case.queries), case.heads, case.threadgroups),
            (SIMDGROUP, simdgroups, 1),
            constants=self._constants(first) | {first + 5: 0, first + 22: simdgroups, first + 23: case.threadgroups},
            threadgroup_bytes=[memory],
        )
        if case.threadgroups > 1:
            self._reduce(partial, result)
        return result

    def _reduce(self, partial: np.ndarray, result: np.ndarray) -> None:
        fc, count = numbers()["FC_FLASH_ATTN_EXT_VEC_REDUCE"], self.case.threadgroups
        rows = self.case.rows * self.case.heads
        args = arguments("flash_attn_ext_vec_reduce", nrows=rows)
        values = {fc: self.case.head_size, fc + 1: count}
        threads = (SIMDGROUP * count, 1, 1)
        self.helpers.run(HELPERS[2], [args, partial, result], [result], (rows, 1, 1), threads, constants=values)

    def _run_matrix(self, pad: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        case, inputs, first, size = self.case, self.inputs, numbers()["FC_FLASH_ATTN_EXT"], self.case.head_size
        queries, simdgroups = numbers()["OP_FLASH_ATTN_EXT_NQPSG"], 4
        scratch = 0 if case.cache_type == "f16" else 16 * 32 * simdgroups
        padded = -(-size // 64) * 64
        memory = (queries * (size + 2 * padded + 4 * self.block) + scratch) * 2 - self.less_memory
        result = np.full((case.rows, case.heads, size), np.nan, np.float32)
        mask, sinks = self._optional(case.mask, inputs.mask), self._optional(case.sinks, inputs.sinks)
        args = self._arguments("flash_attn_ext")
        self.device.run(
            case.kernel("matrix"),
            [args, inputs.q, inputs.k, inputs.v, mask, sinks, pad, blocks, result],
            [result],
            (-(-case.rows // queries), case.heads, 1),
            (SIMDGROUP, simdgroups, 1),
            constants=self._constants(first) | {first + 10: case.rows % queries != 0, first + 22: simdgroups},
            threadgroup_bytes=[memory],
        )
        return result
