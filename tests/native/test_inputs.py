"""Inputs on their way to a device: the scheduler that hands them over, and CUDA's kernel that brings them."""

from __future__ import annotations

import pytest

from tests.native.programs import output_of

pytestmark = pytest.mark.native


def test_each_round_reads_what_its_inputs_were() -> None:
    assert output_of("kvtuner-test-inputs") == "0 failures\n"


def test_cuda_brings_each_byte_to_its_place() -> None:
    assert output_of("kvtuner-test-cuda-inputs") == "36 sets of inputs, 0 failures\n"
