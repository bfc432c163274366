"""One file in two roles: what is chosen for the target and for the draft belongs to each load, not to the path."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.server.llama_server import running_server
from tests.native.test_runtime import complete, tool
from tests.native.test_server_plan import OTHER, PLAN

pytestmark = [pytest.mark.native, pytest.mark.model]

THIRD = Plan.uniform(Pair.parse("q5_0/q4_1"), 30)
BITS = re.compile(r"kvtuner: ([\d.]+) bits per value")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("roles")
    annotate(fetch_model("smollm2-135m"), PLAN, path / "model.gguf")
    OTHER.save(path / "other.json")
    THIRD.save(path / "third.json")
    return path


def bits(plan: Plan | None) -> str | None:
    return None if plan is None else f"{plan.bits_per_value():.4f}"


# what each role is given, and the plan that each has then; None is no plan
ROLES: dict[str, tuple[list[str], Plan | None, Plan | None]] = {
    "plan and metadata": (["--kv-config", "other.json"], OTHER, PLAN),
    "plan and none": (["--kv-config", "other.json", "--kv-config-draft", "none"], OTHER, None),
    "metadata and none": (["--kv-config-draft", "none"], PLAN, None),
    "metadata and types": (["-ctkd", "q8_0"], PLAN, None),
    "none and metadata": (["--kv-config", "none"], None, PLAN),
    "types and plan": (["-ctk", "q8_0", "--kv-config-draft", "third.json"], None, THIRD),
    "two plans": (["--kv-config", "other.json", "--kv-config-draft", "third.json"], OTHER, THIRD),
}


@pytest.mark.parametrize(("case", "fit"), [*((case, "on") for case in ROLES), ("two plans", "off")])
def test_target_and_draft_of_one_file_have_each_its_own(case: str, fit: str, folder: Path, tmp_path: Path) -> None:
    given, target, draft = ROLES[case]
    options = [str(folder / word) if word.endswith(".json") else word for word in given]
    options += ["-md", str(folder / "model.gguf"), "--spec-type", "draft-simple", "-fit", fit]
    with running_server(folder / "model.gguf", tmp_path / "log", n_ctx=256, options=options) as server:
        report = server.call("/props")["kv_cache"]
        logged = set(BITS.findall(server.log))
        answer = server.complete("The capital of France is", 4)
    assert report["fingerprint"] == (None if target is None else target.fingerprint)
    assert logged == {bits(plan) for plan in (target, draft)} - {None}
    assert answer


def test_loads_of_the_bench_follow_each_its_own(folder: Path) -> None:
    configs = f"auto,none,{folder / 'other.json'},auto"
    asked = ("-p", 8, "-n", 0, "-r", 1, "-o", "json", "--kv-config", configs)
    done = tool("llama-bench", "-m", f"{folder / 'model.gguf'},{fetch_model('smollm2-135m')}", *asked)
    rows = json.loads(done.stdout)
    found = sorted((Path(row["model_filename"]).name == "model.gguf", row["kv_bits"]) for row in rows)
    here = [PLAN.bits_per_value(), 16.0, OTHER.bits_per_value(), PLAN.bits_per_value()]
    there = [16.0, 16.0, OTHER.bits_per_value(), 16.0]
    expected = sorted([(True, n) for n in here] + [(False, n) for n in there])
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [n for _, n in found] == pytest.approx([n for _, n in expected], abs=1e-5)


def test_overrides_of_the_user_stay_beside_the_choice(folder: Path) -> None:
    more = ("--kv-config", folder / "other.json", "--override-kv", "general.name=str:other", "-v")
    log = complete(folder / "model.gguf", *more).stderr
    assert f"{OTHER.bits_per_value():.4f} bits per value" in log
    assert re.search(r"general\.name +=.* other\n", log)


def test_a_choice_made_up_by_an_override_is_none(folder: Path) -> None:
    """What stands in the parameters is a number of this process's choices."""
    log = complete(folder / "model.gguf", "--override-kv", "kvtuner.choice=int:99").stderr
    assert f"{PLAN.bits_per_value():.4f} bits per value" in log
