"""How the predictions of the exact model depend on what attention reads from its cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Gradients:
    """Keys and values of one layer as of `Attention`, and gradients by those that are read from the cache.

    ``tokens`` [chunks, context] are those of the text.

    The gradients are of the sum of log-probabilities of one label for each scored token, drawn from what the model
    expects there: products of them with errors of the cache have the KLD of these errors as half of their mean square,
    to second order (the Fisher information). What is read from exact ends has no part in them.
    """

    tokens: Tensor
    key: Tensor
    value: Tensor
    by_key: Tensor
    by_value: Tensor


SeeGradients = Callable[[int, Gradients], None]
"""Called with a layer and its gradients."""
