"""Attention of which the first and the last positions are read exactly, all others from the quantized cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvtuner_gguf.plan.ends import Ends

# queries at a time: what is held beside the tensors is a mask of so many rows
ROWS = 256


class KeysValues(NamedTuple):
    """What one source gives attention to read, both [batch, KV heads, tokens, head size]."""

    key: Tensor
    value: Tensor


def is_exact(ends: Ends, rows: Tensor, n_tokens: int) -> Tensor:
    """Which of the first ``n_tokens`` the queries at the positions ``rows`` read exactly: bool [rows, tokens]."""
    positions = torch.arange(n_tokens, device=rows.device)
    return (positions < ends.first) | (positions > rows[:, None] - ends.last)


def attend_with_ends(query: Tensor, cached: KeysValues, exact: KeysValues, ends: Ends) -> Tensor:
    """Causal attention [batch, heads, tokens, head size] over two sources in one softmax.

    The query at position t reads ``exact`` where p < first or t - last < p <= t, ``cached`` elsewhere. KV heads are
    shared by groups of query heads. Where the sources have more positions, the queries are those of the last ones.
    """
    blocks, stop = [], cached.key.shape[2] - query.shape[2]
    for rows in query.split(ROWS, 2):
        start, stop = stop, stop + rows.shape[2]
        blocks.append(_attend_rows(rows, cached, exact, ends, start, stop))
    return torch.cat(blocks, 2)


def _attend_rows(query: Tensor, cached: KeysValues, exact: KeysValues, ends: Ends, start: int, stop: int) -> Tensor:
    """The queries from ``start`` to ``stop`` over the first positions, what they read of the cache, and the last ones.

    Near the diagonal a position stands twice, and each query sees one of the two.
    """
    first = slice(0, min(ends.first, stop))
    middle = slice(first.stop, max(first.stop, stop - ends.last))
    last = slice(max(ends.first, start - ends.last + 1), stop)
    positions = torch.arange(stop, device=query.device)
    rows = positions[start:, None]
    behind = [rows - positions[part] for part in (first, middle, last)]
    seen = torch.cat((behind[0] >= 0, behind[1] >= ends.last, (behind[2] >= 0) & (behind[2] < ends.last)), 1)
    key, value = (
        torch.cat((e[:, :, first], c[:, :, middle], e[:, :, last]), 2) for c, e in zip(cached, exact, strict=True)
    )
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
