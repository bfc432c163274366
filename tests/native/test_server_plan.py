"""A real server with a plan: what it reports, what a request cannot change, and the states of its slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.report.plans import plan_to_json
from kvtuner_gguf.server.llama_server import Server, running_server

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER, N_CTX = 30, 512
PROMPT = "The capital of France is Paris. The capital of Italy is"


def mixed(*names: str) -> Plan:
    return Plan(tuple(Pair.parse(names[il % len(names)]) for il in range(N_LAYER)))


CENTERS = Centers.from_arrays([np.linspace(-0.1, 0.1, 3 * 64)] * N_LAYER, 16)
PLAN, UNCENTERED = mixed("q8_0/q4_0", "f16", "q5_1/q4_1"), mixed("f16", "q8_0", "q4_0")
OTHER = replace(UNCENTERED, centers=CENTERS.of_quantized(UNCENTERED.pairs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The annotated model, a plan file, and the states that slots save."""
    path = tmp_path_factory.mktemp("server")
    annotate(fetch_model("smollm2-135m"), PLAN, path / "model.gguf")
    OTHER.save(path / "other.json")
    return path


def options(folder: Path, *more: str) -> list[str]:
    return ["--parallel", "2", "--metrics", "--slot-save-path", str(folder), *more]


@pytest.fixture(scope="module")
def annotated(folder: Path) -> Iterator[Server]:
    with running_server(folder / "model.gguf", n_ctx=N_CTX, options=options(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def other(folder: Path) -> Iterator[Server]:
    """The same model, with the plan of a file."""
    more = options(folder, "--kv-config", str(folder / "other.json"))
    with running_server(folder / "model.gguf", n_ctx=N_CTX, options=more) as server:
        yield server


def bytes_per_token(plan: Plan, folder: Path) -> int:
    return plan.bytes_per_token(shape_in(folder))


def shape_in(folder: Path) -> ModelShape:
    return model_shape(read_model(folder / "model.gguf"))


@pytest.mark.parametrize(("name", "plan"), [("annotated", PLAN), ("other", OTHER)])
def test_props_tell_the_plan_and_its_size(name: str, plan: Plan, folder: Path, request: pytest.FixtureRequest) -> None:
    report = request.getfixturevalue(name).call("/props")["kv_cache"]
    n_bytes = N_CTX * bytes_per_token(plan, folder)
    assert report["has_plan"] is True
    assert report["fingerprint"] == plan.fingerprint
    assert report["source"] == ("metadata" if name == "annotated" else str(folder / "other.json"))
    assert report["bits_per_value"] == pytest.approx(plan.bits_per_value())
    assert (report["bytes"], report["mib"]) == (n_bytes, n_bytes / 2**20)
    assert report["centers_bytes"] == plan.centers_bytes(shape_in(folder), ContextSize(N_CTX, n_seq_max=2))
    assert report["layers"] == plan_to_json(plan)["layers"]


def test_props_without_a_plan(folder: Path) -> None:
    with running_server(folder / "model.gguf", n_ctx=N_CTX, options=["--kv-config", "none"]) as server:
        report = server.call("/props")["kv_cache"]
    assert (report["has_plan"], report["fingerprint"], report["source"]) == (False, None, "none")
    assert (report["bits_per_value"], report["centers_bytes"]) == (16.0, 0)


def test_slots_and_metrics_tell_the_bytes_of_the_tokens(annotated: Server, folder: Path) -> None:
    per_token = bytes_per_token(PLAN, folder)
    annotated.complete(PROMPT, 3, id_slot=0)
    slots = annotated.call("/slots")
    assert slots[0]["kv_bytes"] == slots[0]["n_prompt_tokens"] * per_token > 0
    used = sum(slot["kv_bytes"] for slot in slots)
    metrics = annotated.metrics()
    # a metric has 6 digits
    assert metrics["llamacpp:kv_cache_bytes"] == pytest.approx(N_CTX * per_token, rel=1e-5)
    assert metrics["llamacpp:kv_cache_used_bytes"] == pytest.approx(used, rel=1e-5)


def test_a_request_cannot_change_the_plan(annotated: Server) -> None:
    before = annotated.call("/props")["kv_cache"]
    answer = annotated.complete(PROMPT, 8, id_slot=0, cache_prompt=False)
    wanted = {"kv_config": "none", "kv-config": "none", "cache_type_k": "f16", "cache_type_v": "f16"}
    assert annotated.complete(PROMPT, 8, id_slot=0, cache_prompt=False, **wanted) == answer
    assert annotated.call("/props")["kv_cache"] == before


def test_a_slot_goes_on_from_its_saved_state(annotated: Server) -> None:
    annotated.complete(PROMPT, 1, id_slot=0, cache_prompt=False)
    saved = annotated.call("/slots/0?action=save", {"filename": "same.bin"})
    request = {"prompt": PROMPT, "n_predict": 16, "temperature": 0.0, "cache_prompt": True}
    expected = annotated.call("/completion", {**request, "id_slot": 0})
    annotated.call("/slots/1?action=erase", {})
    restored = annotated.call("/slots/1?action=restore", {"filename": "same.bin"})
    found = annotated.call("/completion", {**request, "id_slot": 1})
    assert restored["n_restored"] == saved["n_saved"] > 1
    assert found["timings"]["prompt_n"] == expected["timings"]["prompt_n"] == 1  # the rest came from the cache
    assert found["content"] == expected["content"]


def test_a_slot_refuses_the_state_of_another_plan_and_goes_on(annotated: Server, other: Server) -> None:
    annotated.complete(PROMPT, 1, id_slot=0)
    annotated.call("/slots/0?action=save", {"filename": "other.bin"})
    answer = other.complete(PROMPT, 8, id_slot=0, cache_prompt=False)
    with pytest.raises(KvtunerError) as caught:
        other.call("/slots/0?action=restore", {"filename": "other.bin"})
    message = str(caught.value)
    assert "(400): Unable to restore slot: the state was saved with the KV cache plan [0:q8_0+rot/q4_0+rot" in message
    assert "this context has the plan [0:f16+rot/f16+rot" in message
    assert message.endswith("use the kv-config that it was saved with")
    assert "\n" not in message
    assert other.complete(PROMPT, 8, id_slot=0) == answer


def test_a_damaged_state_is_not_blamed_on_the_plan(other: Server, annotated: Server, folder: Path) -> None:
    annotated.complete(PROMPT, 1, id_slot=0)
    annotated.call("/slots/0?action=save", {"filename": "whole.bin"})
    (folder / "damaged.bin").write_bytes(bytes(12) + (folder / "whole.bin").read_bytes()[12:])
    for name in ("whole.bin", "damaged.bin"):
        with pytest.raises(KvtunerError) as caught:
            other.call("/slots/0?action=restore", {"filename": name})
    assert "plan" not in str(caught.value)


def conflict(folder: Path) -> list[str]:
    return ["--kv-config", str(folder / "other.json"), "-ctk", "q8_0"]


def of_four_layers(folder: Path) -> list[str]:
    Plan.uniform(Pair.parse("q8_0"), 4).save(folder / "short.json")
    return ["--kv-config", str(folder / "short.json")]


def of_no_plan(folder: Path) -> list[str]:
    (folder / "no-plan.json").write_text("{}")
    return ["--kv-config", str(folder / "no-plan.json")]


def no_file(folder: Path) -> list[str]:
    return ["--kv-config", "/nowhere/plan.json"]


UNREADABLE = {
    "no such file": (no_file, ("/nowhere/plan.json", "check the path")),
    "no plan": (of_no_plan, ("no-plan.json", "schema")),
}
WRONG = UNREADABLE | {
    "another model's": (of_four_layers, ("4 layers", "30", "tuned for this model")),
    "two wishes": (conflict, ("other.json", "-ctk/-ctv", "keep one")),
    "without FlashAttention": (lambda folder: ["-fa", "off"], ("layer 0", "V type q4_0", "-fa on")),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_plan_ends_the_server_with_its_reason(case: str, folder: Path, tmp_path: Path) -> None:
    make_options, words = WRONG[case]
    log_path = tmp_path / "log"
    more = options(folder, *make_options(folder))
    with (
        pytest.raises(KvtunerError, match=r"^llama-server ended with status 1: ") as caught,
        running_server(folder / "model.gguf", log_path, N_CTX, options=more),
    ):
        pass
    reason = str(caught.value).partition("status 1: ")[2]
    assert all(word in reason for word in words)
    if case in UNREADABLE:  # known before anything is loaded, so nothing else fails with it
        lines = [line for line in log_path.read_text().splitlines() if reason in line or " E " in line]
        assert len(lines) == 1
