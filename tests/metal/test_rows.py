"""Our kernels that write and read rows of caches: the bytes of the CPU's reference, lanes in three orders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.plan.cachetypes import CACHE_TYPES
from tests.metal.cached import random_rows, values_of
from tests.metal.device import Fault, Order, Rules
from tests.metal.library import OURS
from tests.metal.lint import findings
from tests.metal.rows import CELLS, Blocks, Case, Write, stored

pytestmark = pytest.mark.native

ORDERS = [Rules(Order.FORWARD), Rules(Order.REVERSE), Rules(Order.RANDOM, seed=1)]
OURS_ALONE = ("q3_nl", "q2_nl")


def all_cases() -> Iterator[Case]:
    sizes = [(64, 0), (80, 0), (96, 0), (64, 64), (128, 128), (192, 64), (256, 256), (512, 512)]
    for kind, (head_size, rotation) in product(CACHE_TYPES, sizes):
        heads = 2 * CACHE_TYPES[kind].block_size // np.gcd(head_size, CACHE_TYPES[kind].block_size)
        heads = 2 if head_size % CACHE_TYPES[kind].block_size == 0 else int(heads)
        plain = Case(kind, head_size, heads, rotation=rotation)
        yield plain
        yield replace(plain, tokens=1, center="one", exact="f16" if rotation else "")
        yield replace(plain, tokens=9, center="blocks", scaled=rotation > 0, exact="q8_0" if rotation else "")
        yield replace(plain, of_values=True)


def check(case: Case, rules: Rules) -> None:
    write = Write(case)
    cache, exact = write.run(rules)
    wanted = np.zeros_like(cache)
    wanted[write.cells] = stored(write.values(), case.kind, case.of_values)
    assert_same_blocks(cache, wanted, case.kind)
    beside = np.zeros_like(exact)
    if case.exact:
        beside[write.cells] = stored(write.values(), case.exact, case.of_values)
    assert np.array_equal(exact, beside)


def assert_same_blocks(rows: np.ndarray, wanted: np.ndarray, kind: str) -> None:
    """In every byte; a scale of iq4_nl, added up in another order than on the CPU, may have another last bit."""
    if kind == "iq4_nl":
        blocks, expected = (x.reshape(-1, CACHE_TYPES[kind].block_bytes) for x in (rows, wanted))
        scales, others = (np.ascontiguousarray(x[:, :2]).view(np.int16).astype(int) for x in (blocks, expected))
        assert np.abs(scales - others).max() <= 1
        rows, wanted = blocks[:, 2:], expected[:, 2:]
    assert np.array_equal(rows, wanted)


@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_a_write_stores_what_the_cpu_stores(kind: str, rules: Rules) -> None:
    case = Case(kind, rotation=128, center="one", exact="q8_0")
    check(case, rules)
    check(replace(case, center="blocks", scaled=True, of_values=True, tokens=1), rules)


@pytest.mark.parametrize("kind", ["f16", "q8_0", *OURS_ALONE])
def test_rows_that_nothing_changes_are_stored(kind: str) -> None:
    check(Case(kind, head_size=192), Rules())


@pytest.mark.metal_all
@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
@pytest.mark.parametrize("case", list(all_cases()), ids=str)
def test_all_writes(case: Case, rules: Rules) -> None:
    check(case, rules)


def test_zeros_and_what_is_not_finite_are_stored_as_by_the_cpu() -> None:
    for kind in OURS_ALONE:
        write = Write(Case(kind, head_size=64))
        write.rows[0] = 0
        write.rows[1, :64] = np.inf
        cache, _ = write.run(Rules())
        wanted = stored(write.rows, kind)
        assert np.array_equal(cache[write.cells[[0, 2, 3, 4]]], wanted[[0, 2, 3, 4]])
        assert not np.isfinite(values_of(kind, cache[write.cells[1:2]])[0, :64]).any()


def test_a_cell_that_is_not_there_is_seen() -> None:
    write = Write(Case("q8_0"))
    write.cells[2] = CELLS
    with pytest.raises(Fault, match=r"out of bounds at kvtuner-metal-store\.h:"):
        write.run(Rules())


@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
@pytest.mark.parametrize("kind", ["iq4_nl", *OURS_ALONE])
def test_rows_are_read_as_by_the_cpu(kind: str, rules: Rules) -> None:
    blocks = Blocks(kind)
    cache = random_rows(kind, (blocks.rows, blocks.width), np.random.default_rng(5))
    indices = np.array([6, 0, 3, 3], np.int32)
    values = values_of(kind, cache).astype(np.float32)
    assert np.array_equal(blocks.get_rows(cache, indices, rules), values[indices])
    assert np.array_equal(blocks.copy_from(cache, rules), values.T)
    halves = replace(blocks, number="f16").copy_from(cache, rules)
    assert np.array_equal(halves, values.astype(np.float16).T)


@pytest.mark.parametrize("rules", ORDERS, ids=lambda rules: rules.order.name)
@pytest.mark.parametrize("kind", OURS_ALONE)
def test_copies_to_blocks_are_those_of_keys(kind: str, rules: Rules) -> None:
    blocks = Blocks(kind)
    values = np.random.default_rng(6).standard_normal((blocks.rows, blocks.width), dtype=np.float32)
    made = blocks.copy_to(np.ascontiguousarray(values.T), rules)
    wanted = stored(values, kind)
    assert np.array_equal(made[:, : wanted.shape[1]], wanted)
    assert not made[:, wanted.shape[1] :].any()


def test_our_kernels_have_nothing_that_apples_compiler_rejects() -> None:
    names = frozenset(["KVTUNER_EACH"])
    texts = {path.name: path.read_text().replace("KVTUNER_IN const", "device const") for path in metal_files()}
    assert len(texts) >= 8
    assert {name: found for name, text in texts.items() if (found := findings(text, names))} == {}


def metal_files() -> list[Path]:
    """The files of ours that Metal's compiler sees."""
    files = {path.name: path for folder in OURS for path in folder.glob("kvtuner-*")}
    wanted = [name for name in files if name.endswith(".metal")]
    for name in wanted:
        included = re.findall(r'^#include "(.*)"', files[name].read_text(), re.MULTILINE)
        wanted += [other for other in included if other in files and other not in wanted]
    return [files[name] for name in sorted(wanted)]
