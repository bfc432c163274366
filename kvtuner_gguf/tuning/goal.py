"""What a plan is searched for: the least loss in a budget, or the fewest bytes under a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import ENDS_CTX, Ends
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.shapefields import MAX_COUNT
from kvtuner_gguf.plan.sizes import Sizes

DEFAULT_BITS = 6.5


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Goal:
    """``bits`` true bits per value; or ``mib`` MiB; or at most ``max_kld`` nats per token.

    ``n_ctx``: tokens of the context in which bytes are counted; `sizes` has a default for all but MiB.
    """

    bits: float | None = None
    mib: float | None = None
    n_ctx: int | None = None
    max_kld: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("bits", "mib", "max_kld") if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(map(_option, given)) or "none"
            raise KvtunerError(f"one goal is needed, not {named}: give --bits, --mib or --max-kld")
        (name,) = given
        value = getattr(self, name)
        if not math.isfinite(value) or value <= 0:
            raise KvtunerError(f"{_option(name)} is {value!r}: give a positive number")
        if self.mib is not None and self.n_ctx is None:
            raise KvtunerError("--mib needs the tokens of a context: add --for-ctx, for example --for-ctx 32768")
        if self.n_ctx is not None and not 0 < self.n_ctx <= MAX_COUNT:
            raise KvtunerError(f"--for-ctx is {self.n_ctx}: give 1 to {MAX_COUNT} tokens")

    def sizes(self, shape: ModelShape, ends: Ends | None = None, span: int | None = None) -> Sizes:
        """Sizes in the context that the goal is for.

        By default that has `ENDS_CTX` tokens where there are ``ends`` or a ``span`` of centers, else those of
        ``shape``. A goal in bits counts the first and last positions of one sequence, one in MiB all rows that a
        context keeps for them.
        """
        n_ctx = self.n_ctx or (shape.n_ctx if ends is None and span is None else ENDS_CTX)
        n_rows = None
        if ends is not None and self.mib is not None:
            n_rows = ContextSize(n_ctx).exact_rows(ends.n_positions)
        return Sizes(replace(shape, n_ctx=n_ctx), ends, n_rows, span)

    def budget(self, sizes: Sizes) -> int | None:
        """Bytes as `Sizes` counts them; None where the loss is what is given."""
        if self.mib is not None:
            return math.floor(self.mib * 2**20 / sizes.unit)
        return None if self.bits is None else sizes.budget(self.bits)

    @property
    def ceiling(self) -> float:
        """The KLD that a plan may have; infinite where bytes are given."""
        return math.inf if self.max_kld is None else self.max_kld

    def __str__(self) -> str:
        context = "" if self.n_ctx is None else f" for {self.n_ctx} tokens"
        if self.mib is not None:
            return f"{self.mib:g} MiB{context}"
        return f"{self.bits:g} bits per value{context}" if self.bits is not None else f"a mean KLD of {self.max_kld:g}"
