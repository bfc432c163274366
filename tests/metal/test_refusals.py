"""Plans that an emulated device cannot run, and devices that can do less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.metal.library import WHEEL, compiler
from tests.metal.model_runs import difference, refusal, run
from tests.tiny import write_tiny

pytestmark = pytest.mark.native

Saved = Callable[[str], Path]
REMEDY = "which {} needs: use other types there, --no-kv-offload, or --kv-config none"
COMPILER = "layer {}: the compiler of MTL0 refuses {}, " + REMEDY
THREADS = "layer 0: MTL0 allows 32 threads in a threadgroup of {}, not {}, " + REMEDY


@pytest.fixture(autouse=True, scope="module")
def _library() -> None:
    if WHEEL in (compiler() or []):
        pytest.skip(f"a back end of {WHEEL} has another C++ library than ggml")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two layers, with two query heads for each KV head."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama")


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """The plan of pairs like "q8_0/q4_0 f16/f16", in a file."""

    def save(pairs: str) -> Path:
        Plan(tuple(Pair(*pair.split("/")) for pair in pairs.split())).save(tmp_path / "plan.json")
        return tmp_path / "plan.json"

    return save


# a word of the text that is refused, and the kernel whose text it is
@pytest.mark.parametrize(
    ("text", "kernel"),
    [
        ("KVTUNER_TO block_q2_nl", "kvtuner_write"),
        ("KVTUNER_BLOCK block_q3_nl", "kvtuner_copy_from"),
        ("kernel void kvtuner_halves", "kvtuner_masks"),
    ],
)
def test_kernels_that_the_compiler_refuses(model: Path, saved: Saved, tmp_path: Path, text: str, kernel: str) -> None:
    reason = refusal(model, saved("f16/f16 q3_nl/q2_nl"), tmp_path, KVTUNER_METAL_REFUSE=text)
    assert reason.endswith(COMPILER.format(1, kernel, "q3_nl/q2_nl"))


def test_a_kernel_of_more_queries_that_the_compiler_refuses(model: Path, saved: Saved, tmp_path: Path) -> None:
    """One query has the columns of two heads: 8 are those of four, and more."""
    reason = refusal(model, saved("q8_0/q4_0 q8_0/q4_0"), tmp_path, KVTUNER_METAL_REFUSE="KVTUNER_COLUMNS 8")
    assert reason.endswith(COMPILER.format(0, "kvtuner_attention", "q8_0/q4_0"))


@pytest.mark.parametrize(
    ("kernel", "threads"),
    [
        ("kvtuner_attention", 128),
        ("kvtuner_write", 128),
        ("kvtuner_copy_from", 128),
        ("kvtuner_halves", 256),
        ("kvtuner_masks", 256),
    ],
)
def test_kernels_with_too_few_threads(model: Path, saved: Saved, tmp_path: Path, kernel: str, threads: int) -> None:
    reason = refusal(model, saved("q3_nl/q4_0 q8_0/q4_0"), tmp_path, KVTUNER_METAL_FEW_THREADS=kernel)
    assert reason.endswith(THREADS.format(kernel, threads, "q3_nl/q4_0"))


@pytest.mark.metal_all
def test_a_sum_of_parts_needs_one_simdgroup_alone(model: Path, saved: Saved, tmp_path: Path) -> None:
    few = run(model, saved("f16/f16 f16/f16"), tmp_path, on_device=True, KVTUNER_METAL_FEW_THREADS="kvtuner_add_parts")
    assert "kvtuner_attention" in few.kernels


@pytest.mark.parametrize("pair", ["bf16/bf16", "bf16/q8_0", "q8_0/bf16"])
def test_bf16_without_bfloat(model: Path, saved: Saved, tmp_path: Path, pair: str) -> None:
    reason = refusal(model, saved(f"f16/f16 {pair}"), tmp_path, KVTUNER_METAL_LACKS="bfloat")
    assert reason.endswith(f"layer 1: MTL0 has no bfloat, {REMEDY.format(pair)}")


@pytest.mark.metal_all
def test_other_types_without_bfloat(model: Path, saved: Saved, tmp_path: Path) -> None:
    plan = saved("q3_nl/q8_0 f16/q4_0")
    plain, on_cpu = (run(model, name, tmp_path, on_device=False) for name in ("none", plan))
    lacking = run(model, plan, tmp_path, on_device=True, KVTUNER_METAL_LACKS="bfloat")
    assert {"kvtuner_write", "kvtuner_attention", "kvtuner_halves"} <= lacking.kernels
    assert difference(on_cpu, lacking) < 0.1 * difference(plain, on_cpu)


@pytest.mark.metal_all
def test_without_products_of_matrices_the_cpu_attends(model: Path, saved: Saved, tmp_path: Path) -> None:
    plan = saved("q8_0/q4_0 f16/q5_1")
    plain, on_cpu = (run(model, name, tmp_path, on_device=False) for name in ("none", plan))
    lacking = run(model, plan, tmp_path, on_device=True, KVTUNER_METAL_LACKS="simdgroup_mm")
    assert not any("attn" in name or name.startswith("kvtuner") for name in lacking.kernels)
    assert (lacking.with_context, lacking.later) == ((), ())
    assert difference(on_cpu, lacking) < 0.1 * difference(plain, on_cpu)


def test_without_products_of_matrices_no_types_of_ours(model: Path, saved: Saved, tmp_path: Path) -> None:
    reason = refusal(model, saved("f16/f16 q8_0/q2_nl"), tmp_path, KVTUNER_METAL_LACKS="simdgroup_mm")
    assert "layer 1: V type q2_nl is unknown to MTL0: use --no-kv-offload or another type" in reason
