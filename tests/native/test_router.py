"""The server as a router: every model has the plan of its metadata or of its preset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.plans import plan_to_json
from kvtuner_gguf.server.llama_server import Server, running_server
from tests.native.test_server_plan import OTHER, PLAN

pytestmark = [pytest.mark.native, pytest.mark.model]

PRESETS = """version = 1
[annotated]
model = {folder}/model.gguf

[preset]
model = {source}
kv-config = {folder}/other.json

[overruled]
model = {folder}/model.gguf
kv-config = none

[broken]
model = {source}
kv-config = {folder}/nowhere.json
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("router")
    source = fetch_model("smollm2-135m")
    annotate(source, PLAN, path / "model.gguf")
    OTHER.save(path / "other.json")
    (path / "presets.ini").write_text(PRESETS.format(folder=path, source=source))
    return path


@pytest.fixture(scope="module")
def router(folder: Path) -> Iterator[Server]:
    options = ["--models-preset", str(folder / "presets.ini")]
    with running_server(None, folder / "log", n_ctx=256, options=options) as server:
        yield server


@pytest.mark.parametrize(
    ("model", "plan"), [("annotated", PLAN), ("preset", OTHER), ("overruled", Plan.uniform(Pair.parse("f16"), 30))]
)
def test_each_model_has_its_own_plan(model: str, plan: Plan, router: Server, folder: Path) -> None:
    answer = router.call(
        "/completion", {"model": model, "prompt": "The capital of France is", "n_predict": 4, "temperature": 0.0}
    )
    assert answer["tokens_predicted"] == 4
    report = router.call(f"/props?model={model}")["kv_cache"]
    sources = {"annotated": "metadata", "preset": str(folder / "other.json"), "overruled": "none"}
    assert report["source"] == sources[model]
    assert report["fingerprint"] == (None if model == "overruled" else plan.fingerprint)
    assert report["layers"] == plan_to_json(plan)["layers"]


def test_the_page_of_a_plan_is_that_of_a_named_model(router: Server) -> None:
    assert router.call("/kv?model=preset&format=json") == router.call("/props?model=preset")["kv_cache"]
    with pytest.raises(KvtunerError, match=r"\(400\): a router has no KV cache of its own: name a model"):
        router.call("/kv")


def test_a_request_cannot_change_the_plan(router: Server) -> None:
    router.call("/completion", {"model": "preset", "prompt": "One", "n_predict": 1, "kv_config": "none"})
    assert router.call("/props?model=preset")["kv_cache"]["fingerprint"] == OTHER.fingerprint


def test_a_wrong_plan_for_all_models_ends_the_router() -> None:
    options = ["--kv-config", "/nowhere/plan.json"]
    with (
        pytest.raises(KvtunerError, match=r"ended with status 1: KV config /nowhere/plan\.json: .*check the path"),
        running_server(None, options=options),
    ):
        pass


def test_a_model_with_a_wrong_plan_is_refused_and_the_others_go_on(router: Server) -> None:
    with pytest.raises(KvtunerError, match=r"refuses /completion \(500\): model name=broken failed to load"):
        router.call("/completion", {"model": "broken", "prompt": "One", "n_predict": 1})
    assert "nowhere.json: cannot be read: check the path" in router.log
    assert router.call("/completion", {"model": "annotated", "prompt": "One", "n_predict": 1})["tokens_predicted"] == 1
