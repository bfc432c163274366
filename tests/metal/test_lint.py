"""The lint knows what Apple's compiler rejects, and leaves alone what it accepts: all of upstream's kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.metal.attention import KERNELS
from tests.metal.device import Device, Fault, Rules
from tests.metal.lint import findings

BODY = "kernel void kernel_f(\n    device float * x,\n    ushort i[[thread_index_in_simdgroup]]) {{\n    {}\n}}\n"


def test_upstreams_kernels_have_no_findings() -> None:
    files = sorted(KERNELS.glob("*"))
    assert len(files) > 30
    assert {path.name: found for path in files if (found := findings(path.read_text()))} == {}


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("float * y = x;", "4: no address space: float * y"),
        ("threadgroup float * y = (device float *) x;", "4: threadgroup and device are mixed"),
        ("auto f = [&](float a) { return a; };", "4: a lambda"),
        ("float y[i];", "4: the size of y is no constant: i"),
        ("threadgroup float y[8193];", "4: 32772 bytes of threadgroup memory"),
        ("double y = 1;", "4: double is not in Metal"),
        ("float y = std::abs(x[0]);", "4: std::abs is not in Metal"),
        ("[[likely]] x[0] = 1;", "4: attribute likely"),
    ],
)
def test_a_fault_is_found(line: str, finding: str) -> None:
    assert findings(BODY.format(line)) == [finding]


@pytest.mark.parametrize("parameter", ["float * y", "const float * y", "float4x4 & y"])
def test_a_parameter_without_an_address_space_is_found(parameter: str) -> None:
    assert findings(f"static void f(device float * x, {parameter}) {{\n}}\n") == [f"1: no address space: {parameter}"]


@pytest.mark.parametrize(
    "line",
    [
        "// float * y = x; auto f = [&]() {};",
        "thread float * y = nullptr;",
        "constexpr short N = 4; float y[N];",
        "x[0] = x[1]*x[2];",
        "threadgroup float y[8192];",
        "if (i < x[0]*x[1] && i > 2) { x[0] = 1; }",
    ],
)
def test_what_is_right_is_left_alone(line: str) -> None:
    assert findings(BODY.format(line)) == []


def test_a_dispatch_has_no_more_threadgroup_memory_than_a_device(faults: Path) -> None:
    with pytest.raises(Fault, match="32784 bytes of threadgroup memory"):
        Device(faults, Rules()).run("kernel_sum", [], [], (1, 1, 1), (32, 1, 1), threadgroup_bytes=[32784])
