"""What `kvtuner-gguf eval` judges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.cli.eval import _centered
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales
from tests.conftest import N_LAYER


@pytest.mark.parametrize("ends", [None, Ends(4, 32, "f16")])
@pytest.mark.parametrize("chosen", ["none", "4+32:f16"])
def test_uniform_pairs_have_the_scales_of_a_plan_with_the_ends_they_are_for(
    ends: Ends | None, chosen: str, model: Path, tmp_path: Path
) -> None:
    headers = read_model(model)
    vectors = [np.ones(size) for size in model_shape(headers).sizes_k]
    centers, scales = Centers.from_arrays(vectors, 256), Scales.from_arrays(vectors)
    plan = Plan((Pair.parse("q4_0"),) * N_LAYER, centers=centers, ends=ends, scales=scales)
    plan.save(tmp_path / "plan.json")
    (found,) = _centered(headers, tmp_path / "plan.json", ["q5_0/q4_0"], chosen).values()
    assert found.centers == centers
    assert (found.ends is None) == (chosen == "none")
    assert found.scales == (None if ends and chosen == "none" else scales)
