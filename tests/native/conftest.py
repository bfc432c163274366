"""SmolLM2-135M in the built library, and the text that its caches are judged on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kvtuner_gguf.engine.llama.native import Model, open_model
from kvtuner_gguf.files.assets import fetch_model, fetch_text


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with open_model(fetch_model("smollm2-135m"), n_threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokens(model: Model) -> np.ndarray:
    return model.tokenize(fetch_text("encyclopedia").read_text()[:8000])[:512]
