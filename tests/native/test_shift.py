"""Context shift and sequence operations with f16 layers among quantized ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from kvtuner_gguf.engine.llama.native import Context, Model
from kvtuner_gguf.evaluation.divergence import Tally, score
from kvtuner_gguf.files.assets import fetch_model, fetch_text
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER = 30
MIXED = Plan(tuple(Pair.parse(("f16", "q8_0", "q4_0")[il % 3]) for il in range(N_LAYER)))
F16 = Pair.parse("f16")
N_KEEP, N_DISCARD = 4, 124
N_PAST, N_SCORED, N_TEXTS = 256, 128, 6


@pytest.fixture(scope="module")
def texts(model: Model) -> list[np.ndarray]:
    tokens = model.tokenize(fetch_text("encyclopedia").read_text()[:40000])
    size = N_PAST + N_SCORED + 1
    return [tokens[i * size : (i + 1) * size] for i in range(N_TEXTS)]


@contextmanager
def pair_of_contexts(model: Model) -> Iterator[list[Context]]:
    with model.context(F16, 512, 256) as exact, model.context(MIXED, 512, 256) as mixed:
        yield [exact, mixed]


def shift(context: Context) -> None:
    """Drop tokens after the first few and move the rest up, as a full context does."""
    import llama_cpp

    memory = llama_cpp.llama_get_memory(context._pointer)
    assert llama_cpp.llama_memory_seq_rm(memory, 0, N_KEEP, N_KEEP + N_DISCARD)
    llama_cpp.llama_memory_seq_add(memory, 0, N_KEEP + N_DISCARD, -1, -N_DISCARD)


def mean_kld(model: Model, texts: list[np.ndarray], with_shift: bool) -> float:
    tallies = [Tally(), Tally()]
    with pair_of_contexts(model) as contexts:
        for text in texts:
            logits = []
            for context in contexts:
                context.clear()
                context.decode(text[:N_PAST], 0, want_logits=False)
                if with_shift:
                    shift(context)
                position = N_PAST - N_DISCARD * with_shift
                logits.append(context.decode(text[N_PAST : N_PAST + N_SCORED], position, want_logits=True).copy())
            score(logits[0], logits[1:], text[N_PAST + 1 :], tallies)
    return tallies[1].result().kld_mean


def test_a_shift_of_a_mixed_cache_costs_no_more_than_the_cache(model: Model, texts: list[np.ndarray]) -> None:
    """Against an f16 cache with the same shift; a wrong rotation of one layer would cost whole nats."""
    before, after = mean_kld(model, texts, with_shift=False), mean_kld(model, texts, with_shift=True)
    print(f"KLD {before:.5f} without a shift, {after:.5f} after one")
    assert 0 < after < 1.2 * before


def test_a_shift_of_a_cache_without_rotation(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    with model.context(Pair.parse("q8_0"), 512, 256) as context:
        context.decode(np.arange(1000, 1256, dtype=np.int32), 0, want_logits=False)
        shift(context)
        logits = context.decode(np.array([7], np.int32), N_PAST - N_DISCARD, want_logits=True)
        assert np.isfinite(logits).all()


def test_a_shift_of_a_bf16_cache(model: Model) -> None:
    with model.context(Pair.parse("bf16"), 512, 256) as context:
        context.decode(np.arange(1000, 1256, dtype=np.int32), 0, want_logits=False)
        shift(context)
        logits = context.decode(np.array([7], np.int32), N_PAST - N_DISCARD, want_logits=True)
        assert np.isfinite(logits).all()


def test_a_shift_by_nothing_changes_nothing(model: Model, texts: list[np.ndarray]) -> None:
    import llama_cpp

    with model.context(MIXED, 512, 256) as context:
        answers = []
        for moves in ((), (0,)):
            context.clear()
            context.decode(texts[0][:N_PAST], 0, want_logits=False)
            for move in moves:
                llama_cpp.llama_memory_seq_add(llama_cpp.llama_get_memory(context._pointer), 0, 0, -1, move)
            answers.append(context.decode(texts[0][N_PAST : N_PAST + 2], N_PAST, want_logits=True).copy())
        assert np.array_equal(*answers)


@pytest.mark.parametrize("unified", [True, False])
def test_a_copied_sequence_goes_on_like_the_first(unified: bool) -> None:
    """Copy, keep and remove over one stream or over one stream per sequence."""
    import llama_cpp
    from llama_cpp import kvtuner

    pointer = llama_cpp.llama_model_load_from_file(
        str(fetch_model("smollm2-135m")).encode(), llama_cpp.llama_model_default_params()
    )
    kvtuner.set_kv_config(pointer, MIXED.to_json())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.kv_unified = 512, 2, unified
    params.n_threads = params.n_threads_batch = 2
    context = llama_cpp.llama_init_from_model(pointer, params)
    memory = llama_cpp.llama_get_memory(context)

    def decode(tokens: list[int], position: int, sequence: int) -> np.ndarray:
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position + i, i == len(tokens) - 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        assert llama_cpp.llama_decode(context, batch) == 0
        llama_cpp.llama_batch_free(batch)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (49152,)).copy()

    decode(list(range(1000, 1064)), 0, 0)
    llama_cpp.llama_memory_seq_cp(memory, 0, 1, -1, -1)
    first, second = decode([5], 64, 0), decode([5], 64, 1)
    assert np.allclose(first, second, atol=1e-4)
    if unified:
        llama_cpp.llama_memory_seq_keep(memory, 1)
    else:  # a stream of its own is not touched by what is kept in another
        llama_cpp.llama_memory_seq_rm(memory, 0, -1, -1)
    assert llama_cpp.llama_memory_seq_pos_max(memory, 0) == -1
    assert llama_cpp.llama_memory_seq_rm(memory, 1, 64, -1)
    assert np.allclose(decode([5], 64, 1), second, atol=1e-4)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(pointer)
