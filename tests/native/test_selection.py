"""Which plan a model's contexts follow: chosen once for each, left alone by a choice that fails."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvtuner_gguf.engine.llama.native import patched_llama_cpp
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER = 30
SCRIPT = Path(__file__).with_name("select_while_creating.py")


def test_a_context_has_one_plan_while_another_thread_selects(tmp_path: Path) -> None:
    plans = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, name in zip(plans, ("q8_0/q8_0", "q4_0/q4_0"), strict=True):
        Plan.uniform(Pair.parse(name), N_LAYER).save(path)
    command = [sys.executable, SCRIPT, fetch_model("smollm2-135m"), *plans]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    seen = json.loads(done.stdout)
    assert len(seen) == 2, seen  # the types and the fingerprint of one plan or the other, never of both
    assert {len(set(types)) for types, _ in seen} == {1}, seen


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    out = tmp_path / "annotated.gguf"
    annotate(fetch_model("smollm2-135m"), Plan.uniform(Pair.parse("q8_0/q4_0"), N_LAYER), out)
    return out


def test_a_model_of_vocabulary_alone_needs_no_plan(annotated: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    Plan.uniform(Pair.parse("q4_0"), N_LAYER).save(plan)
    for kv_config in ("auto", str(plan), None):
        llama = patched_llama_cpp().Llama(str(annotated), vocab_only=True, kv_config=kv_config, verbose=False)
        assert llama.tokenize(b"Paris")
        assert llama.kv_cache_types == []
        llama.close()


def test_a_load_of_vocabulary_alone_takes_its_choice(annotated: Path, tmp_path: Path) -> None:
    llama_cpp = patched_llama_cpp()
    from llama_cpp import kvtuner

    plan = tmp_path / "plan.json"
    Plan.uniform(Pair.parse("q4_0"), N_LAYER).save(plan)
    kv_override = kvtuner._lib.kvtuner_kv_override
    kv_override.argtypes = [ctypes.c_char_p, ctypes.c_bool, ctypes.c_bool]
    kv_override.restype = llama_cpp.llama_model_kv_override
    overrides = (llama_cpp.llama_model_kv_override * 2)(kv_override(str(plan).encode(), False, True))
    params = llama_cpp.llama_model_default_params()
    params.kv_overrides = overrides
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(annotated).encode(), params)
    assert model
    llama_cpp.llama_model_free(model)


def test_a_choice_that_fails_leaves_the_one_before(annotated: Path, tmp_path: Path) -> None:
    llama_cpp = patched_llama_cpp()
    from llama_cpp import kvtuner

    data = annotated.read_bytes()
    assert data.count(b"q8_0") == N_LAYER
    annotated.write_bytes(data.replace(b"q8_0", b"q9_9", 1))
    model = llama_cpp.llama_model_load_from_file(str(annotated).encode(), llama_cpp.llama_model_default_params())
    plan = Plan.uniform(Pair.parse("q5_1/q4_1"), N_LAYER)
    plan.save(tmp_path / "plan.json")
    kvtuner.set_kv_config(model, tmp_path / "plan.json")
    Plan.uniform(Pair.parse("q4_0"), 3).save(tmp_path / "short.json")
    for wrong, reason in (("auto", "q9_9"), (tmp_path / "short.json", "3 layers"), ("/nowhere", "check the path")):
        with pytest.raises(ValueError, match=reason):
            kvtuner.set_kv_config(model, wrong)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 64
        context = llama_cpp.llama_init_from_model(model, params)
        assert context, wrong
        assert kvtuner.kv_cache_types(context) == [("q5_1", "q4_1")] * N_LAYER
        assert kvtuner.plan_fingerprint(context) == plan.fingerprint
        llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
