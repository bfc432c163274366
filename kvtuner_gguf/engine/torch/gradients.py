"""One backward pass of the exact model, layer by layer from the inputs that a forward pass has kept.

Each layer is run a second time for its backward pass, so that no more than one layer's activations are held.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvtuner_gguf.engine.ends import KeysValues
from kvtuner_gguf.engine.gradients import Gradients
from kvtuner_gguf.engine.torch.judge import probabilities
from kvtuner_gguf.engine.torch.reference import Reference

# rows of logits at a time: with a vocabulary of 152k each has 0.6 MB
ROWS = 256


def layer_gradients(
    reference: Reference, tokens: Tensor, first: int, generator: torch.Generator
) -> Iterator[tuple[int, Gradients]]:
    """Those of the chunk ``tokens`` [1, context], scored from ``first`` on, from the last layer to the first."""
    inputs: list[Tensor] = []
    output = reference.run(reference.embed(tokens), keep=inputs)
    gradient = _of_labels(reference, output, first, generator)
    for il in reversed(range(reference.n_layer)):
        hidden = inputs.pop().clone().requires_grad_()
        reads: list[tuple[KeysValues, KeysValues]] = []
        with torch.enable_grad():
            out = reference.layer(il, hidden, reads.append)
        ((written, read),) = reads
        gradient, by_key, by_value = torch.autograd.grad(out, (hidden, *read), gradient)
        order = reference.cache.runtime_order
        yield il, Gradients(tokens, order(written.key.detach()), written.value.detach(), order(by_key), by_value)


def _of_labels(reference: Reference, output: Tensor, first: int, generator: torch.Generator) -> Tensor:
    """The gradient by the ``output`` [1, tokens, channels] of the last layer: labels less what is expected."""
    hidden = output.clone().requires_grad_()
    with torch.enable_grad():
        final = reference.norm(hidden)
    by_final = torch.zeros_like(final)
    rows = final.detach()[0, first:].split(ROWS)
    by_final[0, first:] = torch.cat([_row_gradients(reference.head, some, generator) for some in rows])
    return torch.autograd.grad(final, hidden, by_final)[0]


def _row_gradients(head: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    expected = probabilities(rows @ head.T)
    return head[_drawn(expected, generator)] - expected @ head


def _drawn(weights: Tensor, generator: torch.Generator) -> Tensor:
    """An index for each row of ``weights``, as often as its weight says; one search where torch draws row by row."""
    upto = weights.cumsum(-1)
    at = torch.rand(len(weights), 1, generator=generator).to(weights.device) * upto[:, -1:]
    return torch.searchsorted(upto, at, right=True)[:, 0].clamp_max(weights.shape[-1] - 1)
