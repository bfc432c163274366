"""Centers of blocks of positions in the built library: exact wherever they are read, whatever becomes of positions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.engine.llama.native import Model, open_model
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from tests.native.test_center import complete, logits, mean_kld, relative_error
from tests.native.test_state import follow, load, load_sequence, make_state, save_sequence
from tests.tiny import write_tiny

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER, N_VALUES = 30, 3 * 64
RNG = np.random.default_rng(8)
CENTERS = Centers.from_arrays([3 * RNG.standard_normal(N_VALUES) for _ in range(N_LAYER)], 16)
NAMES = ("f16", "q8_0/q4_0", "q5_1/f16", "q3_nl/q2_nl")
MIXED = Plan(tuple(Pair.parse(NAMES[il % len(NAMES)]) for il in range(N_LAYER)), centers=CENTERS)
ENDED = replace(MIXED, ends=Ends(4, 32))
LONG = replace(MIXED, ends=Ends(4, 400, "q8_0"))
SIZES = (
    ContextSize(512),
    ContextSize(1000, n_ubatch=64),
    ContextSize(4096, n_seq_max=3),
    ContextSize(4096, n_seq_max=3, unified=True),
)
SIZES_SCRIPT = Path(__file__).with_name("kv_bytes.py")
TINY = Centers.from_arrays([3 * RNG.standard_normal(128)] * 2, 16)


@pytest.mark.parametrize(
    ("name", "flash_attn", "limit"), [("f32", False, 5e-6), ("f16", False, 3e-3), ("f16", True, 5e-3)]
)
@pytest.mark.parametrize("ends", [None, Ends(4, 32)])
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_span_changes_nothing_in_an_unquantized_cache(
    arch: str,
    ends: Ends | None,
    name: str,
    flash_attn: bool,
    limit: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without FlashAttention one center, the mean of all blocks', serves all positions."""
    value = "q8_0" if ends and flash_attn else name  # a layer without a quantized side has no ends
    plain = Plan.uniform(Pair(name, value), 2)
    spanned = replace(plain, centers=TINY, ends=ends)
    tokens = RNG.integers(0, 250, 128).astype(np.int32)
    with open_model(write_tiny(tmp_path / "m.gguf", arch), 2) as tiny:
        if not flash_attn:
            monkeypatch.setattr(tiny._lib, "LLAMA_FLASH_ATTN_TYPE_ENABLED", tiny._lib.LLAMA_FLASH_ATTN_TYPE_DISABLED)
        with tiny.context(replace(plain, ends=ends), 512, 128) as a, tiny.context(spanned, 512, 128) as b:
            error = relative_error(logits(b, tokens), logits(a, tokens))
    print(f"{arch} {name}: relative error {error:.1e}")
    assert 0 < error < limit


@pytest.mark.parametrize("plan", [MIXED, ENDED, LONG], ids=lambda plan: str(plan.ends))
def test_a_shift_moves_what_was_stored_with_its_center(plan: Plan, model: Model, tokens: np.ndarray) -> None:
    before, after = (mean_kld(model, tokens, plan, with_shift) for with_shift in (False, True))
    single = mean_kld(model, tokens, replace(plan, centers=replace(CENTERS, span=None)))
    print(f"KLD {before:.5f} without a shift, {after:.5f} after one; {single:.5f} with one center")
    assert 0 < after < 2.5 * before
    assert before < 2 * single


@pytest.mark.parametrize("plan", [ENDED, LONG], ids=lambda plan: str(plan.ends))
def test_states_keep_blocks_and_part_those_of_other_spans(plan: Plan, model: Model) -> None:
    others = [replace(plan, centers=replace(CENTERS, span=span)) for span in (None, 32)]
    with model.context(plan, 512, 128) as a, model.context(plan, 256, 128) as small:
        state, of_sequence, expected = make_state(a)
        for context in (a, small):
            context.clear()
            assert load(context, state) == len(state)
            assert np.array_equal(follow(context), expected)
            context.clear()
            assert load_sequence(context, of_sequence) == len(of_sequence)
            assert np.array_equal(follow(context), expected)
        for of_others in others:
            with model.context(of_others, 512, 128) as other:
                assert load(other, state) == 0
                assert "/16" in model._log.reason()


def test_a_state_of_more_blocks_is_refused(model: Model) -> None:
    """Here the context has fewer positions than the state: its last block would have to serve them."""
    with model.context(ENDED, 512, 128) as long, model.context(ENDED, 256, 128) as short:
        long.decode(np.arange(1000, 1010, dtype=np.int32), 400, want_logits=False)
        assert load_sequence(short, save_sequence(long)) == 0
        assert "the state has a key of block 25, the context 16 blocks" in model._log.reason()


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return model_shape(read_model(fetch_model("smollm2-135m")))


def table_bytes(path: Path, plan: Plan, center: bool = True) -> list[int]:
    """Bytes of the tables of centers that contexts of `SIZES` have."""
    contexts = list(map(asdict, SIZES))
    jobs = [{"model": str(path), "plan": plan.to_json(), "center": center, "contexts": contexts}]
    done = subprocess.run([sys.executable, SIZES_SCRIPT], input=json.dumps(jobs), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    (found,) = json.loads(done.stdout)
    return [n_bytes for *_, n_bytes in found]


@pytest.mark.parametrize("span", [16, 1024])
@pytest.mark.parametrize("ends", [None, Ends(4, 32)], ids=str)
def test_tables_have_the_bytes_that_plans_count(span: int, ends: Ends | None, shape: ModelShape) -> None:
    """1024 positions are more than the first context has, and do not divide the 1536 of a sequence in the third."""
    plan = replace(MIXED, centers=replace(CENTERS, span=span), ends=ends)
    partly = replace(plan, centers=plan.centers.of_quantized(plan.pairs))
    for counted in (plan, partly):
        expected = [counted.centers_bytes(shape, size) for size in SIZES]
        assert table_bytes(fetch_model("smollm2-135m"), counted) == expected
        assert min(expected) > 0


def test_without_a_span_or_centers_there_are_no_tables() -> None:
    single = replace(MIXED, centers=replace(CENTERS, span=None))
    for plan, center in ((single, True), (MIXED, False)):
        assert table_bytes(fetch_model("smollm2-135m"), plan, center) == [0] * len(SIZES)


@pytest.mark.parametrize("ends", [None, Ends(4, 32)], ids=str)
def test_the_log_counts_the_tables(ends: Ends | None, shape: ModelShape, tmp_path: Path) -> None:
    path, size = tmp_path / "model.gguf", ContextSize(256)
    plan = annotate(fetch_model("smollm2-135m"), replace(MIXED, model=shape, ends=ends), path)
    done, off = complete("-m", path), complete("-m", path, "--no-kv-center", "--no-kv-ends")
    assert done.returncode == off.returncode == 0
    tables = plan.centers_bytes(shape, size)
    beside = tables + plan.ends_bytes(shape, size)
    bits = plan.bits_per_value(shape) + 8 * beside / shape.n_cached(shape.cells(size))
    turned = f"kvtuner: keys centered in layers 0-29, turned every 16 positions ({tables / 2**20:.2f} MiB)"
    with_them = f"kvtuner: with them {bits:.4f} bits per value in this context, {beside / 2**20:.2f} MiB more"
    assert f"{turned}\n" in done.stderr
    assert f"{with_them}\n" in done.stderr
    assert "with them" not in off.stderr
