"""What other keys and values do to the attention of one layer, for all pairs of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtuner_gguf.engine.attention import Attention

# attention weights of a head that are looked at: of 512 tokens those of 256 queries, of 16k those of 8
WEIGHTS = 1 << 17
# query rows at a time
ROWS = 64
# outputs next to zero would decide a relative error alone
SMALLEST = 1e-6


def attention_errors(
    used: Attention, keys: Sequence[Tensor], values: Sequence[Tensor]
) -> tuple[list[float], list[list[float]], list[list[float]]]:
    """Errors of the attention where ``keys`` or ``values`` take the place of those that it has ``used``.

    All tensors are [chunks, heads, tokens, head size], ``keys`` in the order of `Attention.summed`. The result is, by
    keys, the mean absolute error of the attention weights; by keys and values the mean relative error of the output;
    and by both the squared norm of its error over its own. Some queries of each chunk are looked at.
    """
    query, key, value = used.summed(used.query), used.summed(used.key), used.value
    weights = torch.zeros(len(keys), dtype=torch.float64)
    relative, squares = torch.zeros(2, len(keys), len(values), dtype=torch.float64)
    norm = n_weights = n_outputs = 0.0
    for c in range(query.shape[0]):
        stacked = torch.cat([value[c], *(v[c] for v in values)], -1)
        for rows in some_rows(query.shape[2]).split(ROWS):
            exact_weights = _weights(used, c, query[c], key[c], rows)
            exact = _outputs(exact_weights, stacked, len(values) + 1)[..., :1, :]
            size = exact.abs().clamp_min(SMALLEST)
            norm += exact.square().sum().item()
            n_weights += query.shape[1] * _n_seen(used, c, rows)
            n_outputs += exact.numel()
            for i, other in enumerate(keys):
                changed = _weights(used, c, query[c], other[c], rows)
                moved = _outputs(changed, stacked, len(values) + 1)[..., 1:, :] - exact
                weights[i] += (changed - exact_weights).abs().sum().item()
                squares[i] += moved.square().sum((0, 1, 3)).cpu()
                relative[i] += (moved.abs() / size).sum((0, 1, 3)).cpu()
    return (weights / n_weights).tolist(), (relative / n_outputs).tolist(), (squares / norm).tolist()


def some_rows(n_tokens: int) -> Tensor:
    """Positions of the queries that are looked at, evenly spread, the last included."""
    n_rows = min(n_tokens, max(1, WEIGHTS // n_tokens))
    return (torch.arange(1, n_rows + 1) * n_tokens).div(n_rows, rounding_mode="floor") - 1


def _n_seen(used: Attention, chunk: int, rows: Tensor) -> int:
    """Tokens that the queries of ``chunk`` at ``rows`` see, all together."""
    return int((~used.mask_of(chunk).hides(rows, int(rows[-1]) + 1)).sum())


def _weights(used: Attention, chunk: int, query: Tensor, key: Tensor, rows: Tensor) -> Tensor:
    """Attention weights [KV heads, query heads of each times rows, tokens up to the last row] of one chunk."""
    n_kv, n_seen, size = key.shape[0], int(rows[-1]) + 1, key.shape[-1]
    some = query[:, rows.to(query.device)].reshape(n_kv, -1, size)
    products = some @ key[:, :n_seen].transpose(-1, -2)
    return used.weights(products.unflatten(1, (-1, len(rows))), rows, chunk).flatten(1, 2)


def _outputs(weights: Tensor, stacked: Tensor, n: int) -> Tensor:
    """Attention outputs [KV heads, rows, n, head size] of ``n`` values that lie side by side in ``stacked``."""
    return (weights @ stacked[:, : weights.shape[-1]]).unflatten(-1, (n, -1))
