"""Every architecture with mixed plans against a slow reference: see cpp/test/test_archs.cpp."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from build_folders import installed_folder

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.chosen_ends import chosen_ends
from kvtuner_gguf.gguffile.metadata import centering_obstacle, model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.centers import DEFAULT_SPAN, Centers
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan, of_caches
from kvtuner_gguf.plan.shape import LayerShape, ModelShape
from kvtuner_gguf.tuning.goal import Goal
from tests.native.archs import write_models

pytestmark = pytest.mark.native

PROGRAM = installed_folder() / "kvtuner-test-archs"
SCRIPT = Path(__file__).with_name("greedy_or_logits.py")
SIZES_SCRIPT = Path(__file__).with_name("kv_bytes.py")
SIZES = (
    ContextSize(4096),
    ContextSize(1000, n_ubatch=64),
    ContextSize(4096, swa_full=True),
    ContextSize(4096, n_seq_max=3),
    ContextSize(4096, n_ubatch=100, n_seq_max=3, unified=True),
)
DEPTHS = tuple(ContextSize(n_ctx) for n_ctx in (4096, 32768, 131072))
GROUPS = {
    "sliding window": "afmoe cohere2 cohere2moe exaone4 exaone-moe gemma2 gemma3 gpt-oss granite_swa laguna llama4 "
    "maple mellum mimo2 muse-glimmer olmo2 phi3 plamo3 smallthinker spark2_5",
    "hybrid": "bailingmoe3 falcon-h1 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe minimax-01 "
    "nemotron_h nemotron_h_moe plamo2 qwen35 qwen35moe qwen3next qwen4exp",
    "draft layer": "qwen35_with_draft",
    "recurrent": "mamba mamba2",
    "repeated layers": "hrm_text",
    "latent attention": "deepseek2 minicpm3 mistral4",
    "sparse attention": "deepseek32 dots3note glm-dsa hy_v4 minimax-m3",
    "compressed keys": "deepseek4",
    "no cache": "dream llada llada-moe rnd1",
    "several positions": "cogvlm hunyuan_vl paddleocr qwen2vl qwen3vl qwen3vlmoe",
    "no FlashAttention": "grok",
}
LISTED = {arch: group for group, archs in GROUPS.items() for arch in archs.split()}
REST = ("experts", "plain")
WITHOUT_CACHE = ("recurrent", "no cache")


def group_of(path: Path) -> str:
    arch, _, kind = path.stem.rpartition("-")
    return LISTED.get(arch) or REST[kind == "dense"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Path]]]:
    folder = write_models(tmp_path_factory.mktemp("archs"))
    groups: dict[str, list[Path]] = {group: [] for group in (*GROUPS, *REST)}
    for path in sorted(folder.glob("*.gguf")):
        groups[group_of(path)].append(path)
    yield groups
    shutil.rmtree(folder)


def run(*args: str | Path) -> tuple[int, str]:
    done = subprocess.run([PROGRAM, *args], capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr[-1000:]


def run_all(paths: Sequence[Path]) -> tuple[int, str]:
    """The same of many models, in as many processes as there are processors."""
    n = min(os.cpu_count() or 1, len(paths))
    with ThreadPoolExecutor(n) as pool:
        done = list(pool.map(lambda i: run(*paths[i::n]), range(n)))
    return next((code for code, _ in done if code), 0), "\n".join(report for _, report in done)


def test_every_listed_architecture_has_a_model(models: dict[str, list[Path]]) -> None:
    written = {path.stem.rpartition("-")[0] for paths in models.values() for path in paths}
    assert set(LISTED) <= written
    assert all(models.values())


@pytest.mark.parametrize("group", [*GROUPS, *REST])
def test_plans_agree_with_the_reference(group: str, models: dict[str, list[Path]]) -> None:
    code, report = run_all(models[group])
    assert code == 0, "\n" + report
    n_models = len(models[group])
    is_refused, is_ignored = group == "compressed keys", group in WITHOUT_CACHE
    assert len(re.findall("  refused: architecture deepseek4 keeps compressed keys", report)) == is_refused * n_models
    assert len(re.findall("  ignored: the model keeps no KV cache", report)) == is_ignored * n_models
    plans = 8 * (not is_refused and not is_ignored)
    ran = re.findall(r", limit .* \((?:one sequence|unified streams|own streams|draft), ", report)
    assert len(ran) == plans * n_models


def test_models_where_centering_is_not_exact_refuse_it(models: dict[str, list[Path]]) -> None:
    named = {
        "gpt-oss": "adds attention sinks",
        "gemma2": "caps the attention logits",
        "grok": "caps the attention logits",
    }
    named |= {"deepseek2": "keeps K and V in one tensor"}
    paths = {path.stem.rpartition("-")[0]: path for group in models.values() for path in group}
    for arch, reason in named.items():
        _, report = run("--plan", "f16/f16", paths[arch])
        assert re.search(
            f"  refuses centers: layer \\d+: keys cannot be centered, since this model {reason}", report
        ), arch
    for arch in ("llama", "minimax-m3"):
        _, report = run("--plan", "f16/f16", paths[arch])
        assert "refuses centers" not in report, arch


def test_models_where_scaling_is_not_exact_refuse_it(models: dict[str, list[Path]]) -> None:
    paths = {path.stem.rpartition("-")[0]: path for group in models.values() for path in group}
    own = "has an attention of its own"
    named = {"deepseek2": "keeps K and V in one tensor", "minimax-m3": own, "qwen4exp": own}
    for arch, reason in named.items():
        _, report = run("--plan", "f16/f16", paths[arch])
        assert re.search(f"  refuses scales: layer \\d+: keys cannot be scaled, since this model {reason}", report), (
            arch
        )
    for arch in ("llama", "gpt-oss", "gemma2"):
        _, report = run("--plan", "f16/f16", paths[arch])
        assert "refuses scales" not in report, arch


@pytest.mark.parametrize(("mistake", "n_found"), [("rotation", 5), ("layer", 6), ("center", 1), ("scale", 1)])
def test_a_mistake_in_one_layer_is_found(mistake: str, n_found: int, models: dict[str, list[Path]]) -> None:
    """In the reference, which shows the same difference as one in the library would.

    A rotation that is missing changes less than 2 and 3 bits round, and is not seen in the plan of low bits.
    """
    model = next(path for path in models["plain"] if path.name == "llama-dense.gguf")
    code, report = run("--wrong", mistake, model)
    assert code == 1
    assert report.count("FAILED: above the limit") == n_found, report


def test_hybrid_models_with_a_sliding_window_rotate_with_a_plan_alone(
    models: dict[str, list[Path]], tmp_path: Path
) -> None:
    """As the unpatched library, whose graph of these models has no rotation: the caches hold the same either way.

    A state names the sizes of the rotations that its cache would have.
    """
    model = next(path for path in models["hybrid"] if path.name == "lfm2-dense.gguf")
    plan = tmp_path / "plan.json"
    Plan.uniform(Pair.parse("q8_0"), 2).save(plan)
    states = {}
    for name, is_off in itertools.product(("types", "plan"), ("0", "1")):
        choice = ["--kv-config", plan] if name == "plan" else ["--type-k", "8", "--type-v", "8"]
        command = [sys.executable, SCRIPT, model, tmp_path / "state", "--state", "1:60", *choice]
        env = {**os.environ, "LLAMA_ATTN_ROT_DISABLE": is_off}
        subprocess.run(list(map(str, command)), check=True, env=env, timeout=120)
        states[name, is_off] = (tmp_path / "state").read_bytes()
    assert len(states["types", "0"]) > 10_000
    sizes = [(128, 0), (64, 0)]
    assert differences(states["types", "0"], states["types", "1"]) == sizes
    assert len(differences(states["plan", "0"], states["plan", "1"])) > 1000


def differences(a: bytes, b: bytes) -> list[tuple[int, int]]:
    return [(x, y) for x, y in zip(a, b, strict=False) if x != y]


def plan_of(shape: ModelShape) -> Plan:
    """A mix of types; the values of some architectures cannot be quantized."""

    def pair(il: int) -> Pair:
        fits = shape.layers[il].head_dim_k % 32 == 0
        k = ("q8_0", "q4_0", "f16")[il % 3] if fits else "f16"
        return Pair(k, k if shape.latent else "f16")

    return Plan(tuple(map(pair, range(shape.n_layer))), shape)


def sizes_of(path: Path) -> list[ContextSize]:
    """Without a context of which the base aborts: three streams of recurrent states of kimi-linear."""
    return [size for size in SIZES if size.unified or size.n_seq_max < 3 or not path.name.startswith("kimi-linear")]


def allocations(cases: Iterable[tuple[Path, Plan | None, Sequence[ContextSize]]]) -> list[list[list[float]]]:
    """What ``kv_bytes.py`` finds in the contexts of each model with its plan, or without one."""
    jobs = [
        {"model": str(path), "plan": plan and plan.to_json(), "center": True, "contexts": list(map(asdict, sizes))}
        for path, plan, sizes in cases
    ]
    command = [sys.executable, SIZES_SCRIPT]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-1000:]
    return json.loads(done.stdout)


def test_bytes_and_bits_are_those_of_the_library(models: dict[str, list[Path]]) -> None:
    """For every architecture, with a plan and without, in contexts of several kinds."""
    cases: list[tuple[Path, ModelShape, Plan | None]] = []
    for path in (path for group, paths in models.items() for path in paths if group != "compressed keys"):
        shape = model_shape(read_model(path))
        cases += [(path, shape, None), (path, shape, plan_of(shape))]
    allocated = allocations([(path, plan, sizes_of(path)) for path, _, plan in cases])
    wrong = []
    for (path, shape, plan), found in zip(cases, allocated, strict=True):
        used = plan or Plan.uniform(Pair.parse("f16"), shape.n_layer)
        expected = [used.n_bytes(shape, size) for size in sizes_of(path)]
        weighed = replace(shape, n_ctx=SIZES[0].n_ctx)
        bits = used.bits_per_value(weighed) if weighed.n_values else 0.0
        if [n_bytes for n_bytes, *_ in found] != expected or found[0][1] != pytest.approx(bits):
            wrong.append((path.name, plan is not None, expected, bits, found))
    assert not wrong
    assert len(cases) > 200


def plans_as_tuned(path: Path) -> list[Plan]:
    """One pair in all layers, and pairs that change from layer to layer, with exact ends and turned centers."""
    headers = read_model(path)
    shape = model_shape(headers)
    ends = chosen_ends(None, shape)
    is_centered = centering_obstacle(headers) is None
    centers = Centers.from_arrays(list(map(np.ones, shape.sizes_k)), DEFAULT_SPAN) if is_centered else None
    plans = []
    for names in (("q4_0/q8_0",), ("q8_0/q4_0", "f16/f16", "q5_1/q8_0", "f16/q4_0")):
        chosen = [pair_fitting(names[il % len(names)], layer) for il, layer in enumerate(shape.layers)]
        pairs = of_caches(chosen, shape)
        plans.append(Plan(pairs, shape, centers=centers and centers.of_quantized(pairs), ends=ends))
    return plans


def pair_fitting(name: str, layer: LayerShape) -> Pair:
    pair = Pair.parse(name)
    if layer.latent:
        pair = Pair(pair.k, pair.k)
    sizes = zip((pair.k, pair.v), (layer.head_dim_k, layer.head_dim_v), strict=True)
    return Pair(*(type_ if size % 32 == 0 else "f16" for type_, size in sizes))


def test_bytes_at_every_depth_are_those_of_the_library(models: dict[str, list[Path]]) -> None:
    """For every architecture whose K and V may be quantized, as the plan counts them and as a goal in MiB does."""
    without = ("compressed keys", "no FlashAttention", *WITHOUT_CACHE)
    paths = [path for group, paths in models.items() for path in paths if group not in without]
    cases = [(path, plan) for path in paths for plan in plans_as_tuned(path)]
    wrong = []
    for (path, plan), found in zip(cases, allocations((*case, DEPTHS) for case in cases), strict=True):
        shape = model_shape(read_model(path))
        expected = [[plan.n_bytes(shape, size), plan.centers_bytes(shape, size)] for size in DEPTHS]
        goals = [in_goal(plan, shape, size) for size in DEPTHS]
        if [[n, centers] for n, _, centers in found] != expected or goals != list(map(sum, expected)):
            wrong.append((path.name, plan.pairs[0], expected, goals, found))
    assert not wrong, "\n".join(map(str, wrong))
    assert len(cases) > 200
    assert sum(plan.ends is not None for _, plan in cases) > 180
    assert sum(plan.centers_bytes(plan.model, DEPTHS[0]) > 0 for _, plan in cases) > 150


def in_goal(plan: Plan, shape: ModelShape, size: ContextSize) -> int:
    span = None if plan.centers is None else plan.centers.span
    sizes = Goal(mib=1, n_ctx=size.n_ctx).sizes(shape, plan.ends, span)
    return sizes.unit * sizes.plan(plan.pairs)


def test_the_bytes_of_compressed_keys_are_not_guessed(models: dict[str, list[Path]]) -> None:
    for path in models["compressed keys"]:
        with pytest.raises(KvtunerError, match="keeps compressed keys, to which no plan applies"):
            model_shape(read_model(path))
