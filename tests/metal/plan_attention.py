"""The attention of ours over made-up caches, dispatched as its host does."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import numpy as np

from tests.metal.attention import SIMDGROUP
from tests.metal.cached import CACHE_TYPES, row_bytes
from tests.metal.device import Device, Rules
from tests.metal.library import OURS, build
from tests.metal.plan_cases import PlanCase, PlanInputs
from tests.metal.structs import our_arguments

FILE = OURS[0] / "kvtuner-attention.metal"
HEADER = "kvtuner-metal-attention-args.h"
CONSTANTS = 9000
MOST_COLUMNS = {64: 8, 80: 8, 96: 8, 112: 8, 128: 8, 192: 8, 256: 4, 512: 2}


def columns_of(case: PlanCase) -> int:
    """How many queries of query heads a simdgroup has."""
    wanted, columns = case.rows * case.group, 1
    while columns < min(wanted, MOST_COLUMNS[case.size_k]):
        columns *= 2
    return columns


@lru_cache
def library(size_k: int, size_v: int, columns: int) -> Path:
    """The kernels, compiled for these sizes."""
    defines = {"KVTUNER_DK": size_k, "KVTUNER_DV": size_v, "KVTUNER_COLUMNS": columns}
    return build(FILE, ["kvtuner_attention", "kvtuner_add_parts"], defines=defines)


class PlanAttention:
    """A `PlanCase` on the emulator."""

    def __init__(self, case: PlanCase, rules: Rules | None = None, *, less_memory: int = 0) -> None:
        self.case, self.inputs, self.rules = case, PlanInputs(case), rules or Rules()
        self.less_memory = less_memory

    def run(self) -> np.ndarray:
        """The result ``[streams, rows, heads, size_v]``. Raises `Fault`."""
        case, size_v, columns = self.case, self.case.head_sizes[1], columns_of(self.case)
        n_rows = case.streams * case.rows * case.heads
        result = np.full((case.streams, case.rows, case.heads, size_v), np.nan, np.float32)
        parts = np.full(n_rows * case.parts * (size_v + 2), np.nan, np.float32)
        output = result if case.parts == 1 else parts
        groups = -(-case.rows * case.group // columns)
        memory = case.simdgroups * columns * (size_v + 2) * 4
        device = Device(library(*case.head_sizes, columns), self.rules)
        inputs = self._inputs()
        device.run(
            "kvtuner_attention",
            [*inputs, output],
            [output],
            (case.kv_heads * groups, case.streams, case.parts),
            (SIMDGROUP, case.simdgroups, 1),
            constants=self._constants(),
            threadgroup_bytes=[-(-memory // 16) * 16 - self.less_memory],
        )
        if case.parts > 1:
            self._add_up(inputs[0], parts, result, device)
        return result

    def _inputs(self) -> list[ctypes.Structure | np.ndarray]:
        given, case = self.inputs, self.case
        integers, begins = given.integers()
        optional = [given.mask if case.mask else given.q, given.sinks if case.sinks else given.q]
        exact = [given.exact_k, given.exact_v, given.exact_mask] if case.exact else [given.q] * 3
        more = [given.centers if case.centers else given.q, integers if integers.size else given.q]
        return [self._arguments(begins), given.q, given.k, given.v, *optional, *exact, *more]

    def _arguments(self, begins: dict[str, int]) -> ctypes.Structure:
        case = self.case
        size_k, size_v = case.head_sizes
        n_slots = case.streams * case.slots
        return our_arguments(
            HEADER,
            "kvtuner_metal_attention_args",
            n_query=case.rows,
            n_head=case.heads,
            n_head_kv=case.kv_heads,
            n_stream=case.streams,
            n_token=case.tokens,
            n_exact=case.slots,
            n_slot=n_slots,
            first_slots_at=begins.get("first_slots_at", -1),
            slot_blocks_at=begins.get("slot_blocks_at", 0),
            cell_blocks_at=begins.get("cell_blocks_at", 0),
            q_rotation=case.q_rotation,
            out_rotation=case.out_rotation,
            scale=1 / np.sqrt(size_k) / (case.soft_cap or 1),
            cap=case.soft_cap,
            max_bias=case.max_bias,
            center_block=2 * case.kv_heads * size_k,
            q=(4 * size_k * case.heads, 4 * size_k, 4 * size_k * case.heads * case.rows),
            k=self._strides(case.type_k, size_k, case.tokens),
            v=self._strides(case.type_v, size_v, case.tokens),
            mask=(2 * case.tokens, 0, 2 * case.tokens * case.rows),
            exact_k=self._strides(case.exact_k, size_k, 0),
            exact_v=self._strides(case.exact_v, size_v, 0),
            exact_mask=(2 * n_slots, 0, 2 * n_slots * case.rows),
        )

    def _strides(self, cache_type: str, size: int, tokens: int) -> tuple[int, int, int]:
        head = row_bytes(cache_type, size)
        return head * self.case.kv_heads, head, head * self.case.kv_heads * tokens

    def _constants(self) -> dict[int, int]:
        case = self.case
        kinds = [CACHE_TYPES.index(kind) for kind in (case.type_k, case.type_v, case.exact_k, case.exact_v)]
        flags = [case.mask, case.sinks, case.exact > 0, case.centers]
        return {CONSTANTS + i: int(value) for i, value in enumerate([*kinds, *flags, case.parts, case.simdgroups])}

    def _add_up(self, arguments: ctypes.Structure, parts: np.ndarray, result: np.ndarray, device: Device) -> None:
        n_rows = result.size // result.shape[-1]
        device.run("kvtuner_add_parts", [arguments, parts, result], [result], (n_rows, 1, 1), (SIMDGROUP, 1, 1))
