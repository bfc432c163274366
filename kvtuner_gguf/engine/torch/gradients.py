"""Backward passes of the exact model, layer by layer from the inputs that a forward pass has kept.

Each layer is run a second time for its backward passes, so that no more than one layer's activations are held.
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
# labels for each token: a second one costs less than more text, and halves the noise of the first
DRAWS = 2


def layer_gradients(
    reference: Reference, tokens: Tensor, first: int, generator: torch.Generator
) -> Iterator[tuple[int, Gradients]]:
    """Those of the chunk ``tokens`` [context], scored from ``first`` on, from the last layer to the first."""
    inputs: list[Tensor] = []
    output = reference.run(reference.embed(tokens[None]), keep=inputs)
    order = reference.cache.runtime_order
    gradients = _of_labels(reference, output, first, generator)
    for il in reversed(range(reference.n_layer)):
        hidden = inputs.pop().clone().requires_grad_()
        reads: list[tuple[KeysValues, KeysValues]] = []
        with torch.enable_grad():
            out = reference.layer(il, hidden, reads.append)
        ((written, read),) = reads
        found = [torch.autograd.grad(out, (hidden, *read), gradient, retain_graph=True) for gradient in gradients]
        gradients, by_key, by_value = map(list, zip(*found, strict=True))
        written = KeysValues(*(x.detach() for x in written))
        of_reads = order(torch.cat(by_key)), torch.cat(by_value)
        yield il, Gradients(tokens, order(written.key), written.value, *of_reads, reference.rope)


def _of_labels(reference: Reference, output: Tensor, first: int, generator: torch.Generator) -> list[Tensor]:
    """Gradients by the ``output`` [1, tokens, channels] of the last layer, one for each draw of labels."""
    hidden = output.clone().requires_grad_()
    with torch.enable_grad():
        final = reference.norm(hidden)
    blocks = [_row_gradients(reference.head, rows, generator) for rows in final.detach()[0, first:].split(ROWS)]
    before = final.new_zeros(first, final.shape[-1])
    by_final = (torch.cat((before, *of_draw))[None] for of_draw in zip(*blocks, strict=True))
    return [torch.autograd.grad(final, hidden, gradient, retain_graph=True)[0] for gradient in by_final]


def _row_gradients(head: Tensor, rows: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Labels less what is expected, by what the head takes: for each draw [rows, channels]."""
    weights = probabilities(rows @ head.T)
    expected, upto = weights @ head, weights.cumsum(-1)
    return [head[_drawn(upto, generator)] - expected for _ in range(DRAWS)]


def _drawn(upto: Tensor, generator: torch.Generator) -> Tensor:
    """An index for each row of sums of weights, as often as its weight says; `torch.multinomial` takes far longer."""
    at = torch.rand(len(upto), 1, generator=generator).to(upto.device) * upto[:, -1:]
    return torch.searchsorted(upto, at, right=True)[:, 0].clamp_max(upto.shape[-1] - 1)
