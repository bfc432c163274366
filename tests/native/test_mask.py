"""Masks of sequences that are alone in their stream, against the definition cell by cell."""

from __future__ import annotations

import pytest

from tests.native.programs import output_of

pytestmark = pytest.mark.native


def test_masks_of_random_histories() -> None:
    assert output_of("kvtuner-test-mask").endswith(", 0 failures\n")
