"""What the emulator computes, and that it sees each fault it is there for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.metal.device import Device, Fault, Order, Rules
from tests.metal.source import Untranslated, translate

ORDERS = [Rules(Order.FORWARD), Rules(Order.REVERSE), Rules(Order.RANDOM, seed=1), Rules(Order.RANDOM, seed=2)]


def run(library: Path, kernel: str, rules: Rules, *, memory: int = 0) -> np.ndarray:
    """The 32 values that one simdgroup wrote."""
    result = np.zeros(32, np.float32)
    given = [np.arange(32, dtype=np.float32)] if kernel == "kernel_read_past_the_end" else []
    sizes = [memory] if memory else []
    Device(library, rules).run(kernel, [*given, result], [result], (1, 1, 1), (32, 1, 1), threadgroup_bytes=sizes)
    return result


def sums(library: Path, rules: Rules, *, memory: int = 16) -> np.ndarray:
    """The sums of 3 threadgroups of 4 simdgroups each."""
    values = np.arange(3 * 128, dtype=np.float32)
    result = np.zeros(3, np.float32)
    device = Device(library, rules)
    more = {"constants": {0: 128}, "threadgroup_bytes": [memory]}
    device.run("kernel_sum", [values, result], [result], (3, 1, 1), (128, 1, 1), **more)
    return result


@pytest.mark.parametrize("rules", ORDERS)
def test_sums_are_right_in_any_order(faults: Path, rules: Rules) -> None:
    expected = np.arange(3 * 128, dtype=np.float32).reshape(3, 128).sum(1)
    assert sums(faults, rules).tolist() == expected.tolist()


@pytest.mark.parametrize("rules", ORDERS)
def test_lanes_that_end_early_count_in_the_last_operation(faults: Path, rules: Rules) -> None:
    assert run(faults, "kernel_sum_and_end", rules).tolist() == [32.0] * 32


@pytest.mark.parametrize("rules", ORDERS)
def test_memory_that_a_kernel_declares_is_one_for_all_lanes(faults: Path, rules: Rules) -> None:
    assert run(faults, "kernel_declared", rules).tolist() == list(range(31, -1, -1))


@pytest.mark.parametrize("rules", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "memory", "message"),
    [
        ("kernel_write_past_the_end", 128, "out of bounds at faults.metal:"),
        ("kernel_read_past_the_end", 0, "out of bounds at faults.metal:"),
        ("kernel_unwritten", 128, "threadgroup memory that nobody wrote at faults.metal:"),
        ("kernel_barrier_for_some", 0, "divergence: lane 0 at threadgroup_barrier, line .* has ended"),
        ("kernel_sum_for_some", 0, "divergence: lane 0 at simd_sum, line .*, lane 16 at simd_max"),
        ("kernel_same_place", 0, "race: write of what another lane writes at faults.metal:"),
        ("kernel_shuffle_from_nobody", 0, "shuffle from a lane that does not exist"),
        ("kernel_overflow", 0, "undefined: add_overflow at faults.metal:"),
        ("kernel_misaligned", 0, "undefined: type_mismatch_v1 at faults.metal:"),
        ("kernel_write_an_input", 128, "write to an input at faults.metal:"),
    ],
)
def test_a_fault_is_seen(faults: Path, rules: Rules, kernel: str, memory: int, message: str) -> None:
    if kernel == "kernel_write_an_input":
        values, result = np.zeros(32, np.float32), np.zeros(32, np.float32)
        with pytest.raises(Fault, match=message):
            Device(faults, rules).run(kernel, [values, result], [result], (1, 1, 1), (32, 1, 1))
        return
    with pytest.raises(Fault, match=message):
        run(faults, kernel, rules, memory=memory)


@pytest.mark.parametrize("rules", ORDERS)
def test_a_barrier_that_is_missing_is_seen(faults: Path, rules: Rules) -> None:
    line = next(n for n, text in enumerate(FAULTS_TEXT, 1) if "threadgroup_barrier" in text)
    with pytest.raises(Fault, match=r"race|nobody wrote"):
        sums(faults, replace(rules, skip_barrier=line))


@pytest.mark.parametrize("rules", ORDERS)
def test_less_threadgroup_memory_than_a_kernel_uses_is_seen(faults: Path, rules: Rules) -> None:
    with pytest.raises(Fault, match="out of bounds"):
        sums(faults, rules, memory=12)


@pytest.mark.parametrize("rules", ORDERS)
def test_operations_of_a_simdgroup_order_memory_unless_rules_are_strict(faults: Path, rules: Rules) -> None:
    assert run(faults, "kernel_neighbour", rules, memory=128).tolist() == [*range(32, 63), 31]
    with pytest.raises(Fault, match="race"):
        run(faults, "kernel_neighbour", replace(rules, strict=True), memory=128)


def test_lanes_past_a_shuffles_end_get_garbage(faults: Path) -> None:
    poisoned = run(faults, "kernel_past_a_shuffle", Rules())
    assert np.isnan(poisoned[28:]).all()
    assert (poisoned[:28] == 1).all()
    assert (run(faults, "kernel_past_a_shuffle", Rules(poison=False)) == 1).all()


def test_a_device_goes_on_after_a_fault(faults: Path) -> None:
    with pytest.raises(Fault):
        run(faults, "kernel_barrier_for_some", Rules())
    assert sums(faults, Rules())[0] == 127 * 64


def test_an_attribute_that_is_not_known_is_refused() -> None:
    with pytest.raises(Untranslated, match=r"made_up\.metal:2"):
        translate("kernel void f(\n    uint x[[amplification_id]]) {}", "made_up.metal", [])


FAULTS_TEXT = (Path(__file__).parent / "kernels" / "faults.metal").read_text().split("\n")
