"""The library in this process."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kvtuner_gguf.engine.llama.native import Model, open_model, patched_llama_cpp
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

N_LAYER = 30


def test_the_unpatched_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", ModuleType("llama_cpp"))
    monkeypatch.delitem(sys.modules, "llama_cpp.kvtuner", raising=False)
    with pytest.raises(KvtunerError, match=r"^no patched llama-cpp-python here .*: run 'make build'") as caught:
        patched_llama_cpp()
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def model():
    with open_model(fetch_model("smollm2-135m")) as model:
        yield model


@pytest.mark.native
@pytest.mark.model
class TestBuilt:
    def test_a_pair_and_a_plan_are_allocated_as_asked(self, model: Model) -> None:
        mixed = Plan(tuple(Pair.parse(("q8_0/q4_0", "f16/f16", "q5_1/iq4_nl")[il % 3]) for il in range(N_LAYER)))
        for cache in (Pair("q8_0", "q4_0"), mixed, Pair("f16", "f16")):
            plan = cache if isinstance(cache, Plan) else Plan.uniform(cache, N_LAYER)
            with model.context(cache, 256, 64) as context:
                assert context.cache_types == list(plan.pairs)

    def test_batches_add_up_to_the_whole(self, model: Model) -> None:
        tokens = model.tokenize("The quick brown fox jumps over the lazy dog. " * 6)
        with model.context(Pair("f16", "f16"), 256, 64) as context:
            whole = context.decode(tokens[:32], 0, want_logits=True).copy()
            context.clear()
            assert context.decode(tokens[:16], 0, want_logits=False).shape == (0, model.n_vocab)
            half = context.decode(tokens[16:32], 16, want_logits=True)
            np.testing.assert_allclose(half, whole[16:], atol=0.02)
            assert np.abs(whole[16:] - whole[:16]).max() > 1

    def test_a_plan_that_does_not_fit_names_the_reason(self, model: Model) -> None:
        short = Plan.uniform(Pair("q8_0", "q8_0"), 3)
        with pytest.raises(KvtunerError, match="3 layers"), model.context(short, 256, 64):
            pass

    def test_caches_go_to_the_host_together_where_a_device_cannot_hold_one(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, make = [], Model._context_params

        def params(self: Model, pair: Pair, n_ctx: int, n_batch: int, offload: bool) -> ctypes.Structure:
            made.append((offload, make(self, pair, n_ctx, n_batch, offload)))
            if offload and len(made) == 2:
                raise KvtunerError("layer 0: K type q3_nl is unknown to GPU0: use --no-kv-offload or another type")
            return made[-1][1]

        monkeypatch.setattr(Model, "_context_params", params)
        caches = [Pair("f16", "f16"), Plan.uniform(Pair("q3_nl", "q3_nl"), N_LAYER)]
        with model.contexts(caches, 256, 64) as contexts:
            assert [context.cache_types[0] for context in contexts] == [Pair("f16", "f16"), Pair("q3_nl", "q3_nl")]
        assert [(offload, asked.offload_kqv) for offload, asked in made] == [(True, True)] * 2 + [(False, False)] * 2

    def test_other_refusals_are_not_tried_again(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        asked, context = [], Model.context
        monkeypatch.setattr(
            Model, "context", lambda *args, **options: asked.append(options) or context(*args, **options)
        )
        short = Plan.uniform(Pair("q8_0", "q8_0"), 3)
        with pytest.raises(KvtunerError, match="3 layers"), model.contexts([Pair("f16", "f16"), short], 256, 64):
            pass
        assert asked == [{}, {}]

    def test_a_file_that_is_no_model(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(b"no model at all")
        with pytest.raises(KvtunerError, match=rf"^cannot load {path}: .*; check that"), open_model(path):
            pass
        assert capfd.readouterr().err == ""
