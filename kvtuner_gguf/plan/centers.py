"""The centers of a plan: what is taken off every key of a layer before it is written to the cache.

In exact arithmetic a center changes nothing, since the softmax over keys does not see it, so any vector is right; a
good one leaves less to lose in few bits. Values have none: ``configs/centering.md`` has the reason.

RoPE turns what keys have in common from position to position. With a *span* the centers are those of the positions
from 0 to span - 1, and the keys of a later block of so many positions lose their layer's center as RoPE turns it by the
block's first position.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.plan.shapefields import is_count
from kvtuner_gguf.plan.vectors import Vectors, as_vectors

MIN_SPAN, MAX_SPAN = 16, 1 << 16
# configs/centering.md has the losses with others
DEFAULT_SPAN = 256


@dataclass(frozen=True)
class Centers(Vectors):
    """`Vectors` with their ``span``: positions of a block, a power of two; None where one center serves all positions.

    Raises `KvtunerError` for a span without a center, too.
    """

    span: int | None = None

    what: ClassVar[str] = "center"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.span is not None:
            check_span(self.span)
            if not any(self.k):
                raise KvtunerError("center_span is given, and no layer has a center: leave it out")

    @classmethod
    def from_arrays(cls, k: Iterable[np.ndarray | None], span: int | None = None) -> Centers:
        """From one array per layer, of any shape; None for a layer without a center."""
        return cls(as_vectors(k), span)

    def table_bytes(self, il: int, n_ctx: int) -> int:
        """Bytes of layer ``il``'s turned centers for ``n_ctx`` positions; 0 where one center serves all."""
        return len(self.k[il]) * n_blocks(self.span, n_ctx)


def n_blocks(span: int | None, n_ctx: int) -> int:
    """Blocks of ``span`` positions in ``n_ctx``, each of which has a center in float16; 0 without a span."""
    return 0 if span is None else -(-n_ctx // span)


def centers_or_none(k: Iterable[bytes], span: Any = None) -> Centers | None:
    """The centers ``k`` of all layers, as a file has them; None where no layer has one and no ``span`` is given."""
    k = tuple(k)
    return Centers(k, span) if any(k) or span is not None else None


def check_span(span: object) -> None:
    if not is_count(span) or not MIN_SPAN <= span <= MAX_SPAN or span & (span - 1):
        raise KvtunerError(f"the center span is {shown(span)}: give a power of two from {MIN_SPAN} to {MAX_SPAN}")
