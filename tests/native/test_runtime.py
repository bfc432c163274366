"""The built tools and bindings follow a plan: types, bytes, precedence, reports and errors."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

pytestmark = [pytest.mark.native, pytest.mark.model]

BIN = Path(sys.executable).parent
N_LAYER, N_HEAD_KV, HEAD_DIM, N_CTX = 30, 3, 64, 512
NAMES = ("q8_0/q4_0", "f16/f16", "q5_1/q4_1", "q4_0/iq4_nl", "bf16/q5_0", "f32/q8_0", "q5_0/f16")
PAIRS = tuple(Pair.parse(NAMES[il % len(NAMES)]) for il in range(N_LAYER))


@pytest.fixture(scope="module")
def model() -> Path:
    return fetch_model("smollm2-135m")


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    Plan(PAIRS).save(path)
    return path


@pytest.fixture(scope="module")
def annotated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("annotated") / "model.gguf"
    annotate(model, Plan(PAIRS), path)
    return path


def llama(path: Path, **kwargs: object):
    from llama_cpp import Llama

    return Llama(str(path), n_ctx=N_CTX, verbose=False, **kwargs)


def tool(name: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / name), *map(str, args)]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)


def complete(path: Path, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    fixed = ("-p", "Once", "-n", "4", "--temp", "0", "-no-cnv", "-c", N_CTX, "--no-warmup")
    return tool("llama-completion", "-m", path, *fixed, *args, **env)


def as_types(pairs: tuple[Pair, ...]) -> list[tuple[str, str]]:
    return [(pair.k, pair.v) for pair in pairs]


def test_each_layer_has_its_types_and_bytes(annotated: Path) -> None:
    model = llama(annotated)
    values = N_HEAD_KV * HEAD_DIM * N_CTX
    assert model.kv_cache_types == as_types(PAIRS)
    assert model.kv_cache_bytes == sum(cache_type(t).row_bytes(values) for pair in PAIRS for t in (pair.k, pair.v))
    assert model("The capital of France is", max_tokens=8, temperature=0)["choices"][0]["text"].strip()


def test_kv_config_of_the_bindings(model: Path, annotated: Path, plan_file: Path) -> None:
    f16 = [("f16", "f16")] * N_LAYER
    assert llama(model).kv_cache_types == f16
    assert llama(annotated, kv_config=None).kv_cache_types == f16
    assert llama(model, kv_config=str(plan_file)).kv_cache_types == as_types(PAIRS)
    assert llama(model, kv_config=Plan(PAIRS).to_json()).kv_cache_types == as_types(PAIRS)
    uniform = llama(annotated, type_k=8, type_v=8, flash_attn=True)
    assert uniform.kv_cache_types == [("q8_0", "q8_0")] * N_LAYER


def test_a_pickled_llama_keeps_its_plan(model: Path, plan_file: Path) -> None:
    copy = pickle.loads(pickle.dumps(llama(model, kv_config=str(plan_file))))
    assert copy.kv_cache_types == as_types(PAIRS)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"kv_config": "/nowhere/plan.json"}, ("/nowhere/plan.json", "check the path")),
        ({"flash_attn": False}, ("layer 0", "V type q4_0", "FlashAttention")),
        ({"kv_config": {"schema": "kvtuner.plan/1", "layers": [{"layer": 0, "k": "f16", "v": "f16"}]}}, ("1", "30")),
        ({"kv_config": "{}", "type_k": 8}, ("type_k", "keep one")),
    ],
)
def test_errors_of_the_bindings_say_what_to_do(annotated: Path, kwargs: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=words[0]) as caught:
        llama(annotated, **kwargs)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_the_start_up_log_names_every_pair_once(annotated: Path) -> None:
    log = complete(annotated).stderr
    for name in NAMES:
        first = NAMES.index(name)
        layers = ",".join(str(il) for il in range(first, N_LAYER, len(NAMES)))
        assert log.count(f"kvtuner: {name:<14} layers {layers}\n") == 1
    assert f"{Plan(PAIRS).bits_per_value():.4f} bits per value" in log


def test_precedence_of_command_line_metadata_and_default(model: Path, annotated: Path, plan_file: Path) -> None:
    total = f"{Plan(PAIRS).bits_per_value():.4f} bits per value"
    assert total in complete(model, "--kv-config", plan_file).stderr
    assert total in complete(model, LLAMA_ARG_KV_CONFIG=str(plan_file)).stderr
    for args in (("--kv-config", "none"), ("-ctk", "f16"), ("-ctk", "q8_0", "-ctv", "q8_0")):
        done = complete(annotated, *args)
        assert done.returncode == 0
        assert "kvtuner" not in done.stderr


def test_a_quantized_v_without_flash_attention_is_refused(annotated: Path) -> None:
    done = complete(annotated, "-fa", "off")
    assert done.returncode != 0
    # once for the fit to memory and once for the context itself
    (line,) = {line.partition(" E kvtuner: ")[2] for line in done.stderr.splitlines() if " E kvtuner: " in line}
    assert all(word in line for word in ("layer 0", "V type q4_0", "-fa on"))


def test_a_plan_file_and_uniform_types_conflict(model: Path, plan_file: Path) -> None:
    done = complete(model, "--kv-config", plan_file, "-ctk", "q8_0")
    assert done.returncode != 0
    assert "keep one" in done.stderr


def test_the_bench_has_a_column_for_the_plan(model: Path, plan_file: Path) -> None:
    done = tool("llama-bench", "-m", model, "-p", 8, "-n", 0, "-r", 1, "-o", "json", "--kv-config", f"none,{plan_file}")
    rows = json.loads(done.stdout)
    assert [row["kv_config"] for row in rows] == ["none", str(plan_file)]
    assert [row["kv_bits"] for row in rows] == [16.0, pytest.approx(Plan(PAIRS).bits_per_value(), abs=1e-5)]


def test_the_bench_fills_the_cache_of_each_plan_anew(model: Path, plan_file: Path) -> None:
    run = ("-p", 0, "-n", 1, "-r", 2, "-d", 8, "--kv-config", f"none,{plan_file}")
    done = tool("llama-bench", "-m", model, *run)
    assert done.returncode == 0
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    "name", ["llama-server", "llama-cli", "llama-completion", "llama-perplexity", "llama-bench", "llama-batched-bench"]
)
def test_every_tool_knows_the_flag(name: str) -> None:
    done = tool(name, "--help")
    assert "--kv-config" in done.stdout + done.stderr
