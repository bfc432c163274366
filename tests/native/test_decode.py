"""The values of each cache type, as the built library reads them, against the one definition of its blocks."""

from __future__ import annotations

import pytest

from tests.native.programs import output_of

pytestmark = pytest.mark.native


def test_rows_and_columns_of_every_type() -> None:
    assert output_of("kvtuner-test-decode").splitlines()[-1] == "0 failures"
