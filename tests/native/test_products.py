"""Products whose rows are quantized already: those of the same rows, and those of what attention or a norm made; and
products with some rows, which CUDA computes by a kernel of its own."""

from __future__ import annotations

import pytest
from build_folders import build_folder

from tests.native.programs import output_of

pytestmark = pytest.mark.native


def test_which_products_find_their_rows_quantized() -> None:
    assert output_of("kvtuner-test-products") == "0 failures\n"


def test_cuda_quantizes_what_a_norm_makes_as_upstream_does() -> None:
    assert output_of("kvtuner-test-cuda-norm") == "18 sets of rows, 0 failures\n"


def test_cuda_multiplies_weights_and_some_rows() -> None:
    assert output_of("kvtuner-test-cuda-thin") == "37 products, 0 failures\n"


def test_products_on_a_device_agree_with_a_plain_loop() -> None:
    expected = "36 products, 0 failures; 0 of 6 came out otherwise with a plan\n"
    assert output_of("kvtuner-test-gpu-products", "CPU", "1", "small") == expected


@pytest.mark.gpu
def test_products_on_cuda_agree_with_a_plain_loop() -> None:
    """Of six types four have a kernel of ours, for seven of ten counts of rows, and two more shapes."""
    output = output_of("kvtuner-test-gpu-products", "CUDA0", folder=build_folder("cuda"))
    assert output.splitlines()[-1] == "432 products, 0 failures; 36 of 72 came out otherwise with a plan"
