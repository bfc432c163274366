"""Products whose rows are quantized already: those of the same rows, and those of what attention or a norm made; and
products with some rows, which CUDA computes by a kernel of its own."""

from __future__ import annotations

import pytest

from tests.native.programs import output_of

pytestmark = pytest.mark.native


def test_which_products_find_their_rows_quantized() -> None:
    assert output_of("kvtuner-test-products") == "0 failures\n"


def test_cuda_quantizes_what_a_norm_makes_as_upstream_does() -> None:
    assert output_of("kvtuner-test-cuda-norm") == "18 sets of rows, 0 failures\n"


def test_cuda_multiplies_weights_and_some_rows() -> None:
    assert output_of("kvtuner-test-cuda-thin") == "49 products, 0 failures\n"
