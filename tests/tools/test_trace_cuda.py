"""What a trace of kernels says of a layer."""

from __future__ import annotations

import pytest
from trace_cuda import layer_rows, read_kernels, short_name


def test_names_are_those_of_functions() -> None:
    assert short_name("void kvtuner::cuda::attend_short<128, 128, 1>(kvtuner::cuda::attention_args)") == "attend_short"
    assert short_name("void (anonymous namespace)::write_rows<all_formats>(write_set)") == "write_rows"
    assert short_name("quantize_q8_1(float const*, void*)") == "quantize_q8_1"


def test_a_kernel_costs_what_it_ends_later() -> None:
    lines = ["0 10000 void norm<1>(float)"]
    for layer in range(4):
        begin = 10000 + 9000 * layer
        lines += [f"{begin} {begin + 6000} void a::attend<1>(b)", f"{begin + 1000} {begin + 9000} void mul<2>(float)"]
    attend, mul = layer_rows(read_kernels("\n".join(reversed(lines))))
    assert (attend.name, attend.ran, attend.cost) == ("attend", 6, 6)
    assert (mul.name, mul.ran, mul.cost) == ("mul", 8, pytest.approx(3))


def test_a_run_without_attention_has_no_layer() -> None:
    assert layer_rows(read_kernels("0 1 void norm<1>(float)")) == []
