"""Chunks in which different tokens are seen, as attention has them that chooses what it sees."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.attention import Attention, Causal, Rope, Seen  # noqa: E402
from kvtuner_gguf.engine.llama.engine import joined  # noqa: E402
from kvtuner_gguf.tuning.disturbance import attention_errors  # noqa: E402
from kvtuner_gguf.tuning.scale import energies_by_attention, error_weights  # noqa: E402

N_TOKENS, SIZE = 12, 8
ROPE = Rope(torch.zeros(SIZE // 2), interleaved=False)


def chunk(seed: int) -> Attention:
    """One in which each token sees itself and some of those before it."""
    random = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, n, N_TOKENS, SIZE, generator=random) for n in (4, 2, 2))
    seen = (torch.rand(N_TOKENS, N_TOKENS, generator=random) < 0.5).tril() | torch.eye(N_TOKENS, dtype=torch.bool)
    return Attention(query, key, value, 0.3, Seen(seen), rope=ROPE)


FIRST, SECOND = chunk(1), chunk(2)
JOINED = joined([FIRST, SECOND])


def test_masks_that_are_one_stay_one() -> None:
    causal = [replace(used, mask=Causal(5)) for used in (FIRST, SECOND)]
    assert joined(causal).mask == Causal(5)
    windows = joined([causal[0], replace(SECOND, mask=Causal(6))])
    assert [windows.mask_of(c) for c in range(2)] == [Causal(5), Causal(6)]
    mixed = joined([causal[0], SECOND])
    assert [mixed.mask_of(c) for c in range(2)] == [Causal(5), SECOND.mask]


def test_scales_see_what_each_chunk_sees() -> None:
    for c, alone in enumerate((FIRST, SECOND)):
        blocks = zip(error_weights(JOINED, c, None), error_weights(alone, 0, None), strict=True)
        for (rows, found), (_, expected) in blocks:
            assert torch.equal(found, expected)
            hidden = ~alone.mask.seen[rows]
            assert not found[..., hidden].any()
    sums = [energies_by_attention(used, used, None) for used in (JOINED, FIRST, SECOND)]
    for both, first, second in zip(*sums, strict=True):
        assert torch.allclose(both, first + second)


def test_a_profile_sees_what_each_chunk_sees() -> None:
    """Mean errors of attention weights, over the tokens that are seen; the errors of chunks add up."""
    moved = [replace(used, key=used.key + 0.1 * used.key.roll(1, 2)) for used in (JOINED, FIRST, SECOND)]
    given = zip((JOINED, FIRST, SECOND), moved, strict=True)
    both, first, second = (attention_errors(used, [other.key], [used.value])[0][0] for used, other in given)
    n_first, n_second = (int(used.mask.seen.sum()) for used in (FIRST, SECOND))
    assert n_first != n_second
    assert both == pytest.approx((n_first * first + n_second * second) / (n_first + n_second), rel=1e-5)
