"""What a plan is searched for: the least loss in a budget, or the fewest bytes under a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.shapefields import MAX_COUNT
from kvtuner_gguf.tuning.sizes import Sizes

DEFAULT_BITS = 6.5


@dataclass(frozen=True)
class Goal:
    """``bits`` true bits per value; or ``mib`` MiB for ``n_ctx`` tokens; or at most ``max_kld`` nats per token."""

    bits: float | None = None
    mib: float | None = None
    n_ctx: int | None = None
    max_kld: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("bits", "mib", "max_kld") if getattr(self, name) is not None]
        if len(given) != 1:
            raise KvtunerError(
                f"one goal is needed, not {' and '.join(given) or 'none'}: give --bits, --mib or --max-kld"
            )
        (name,) = given
        value = getattr(self, name)
        if not math.isfinite(value) or value <= 0:
            raise KvtunerError(f"--{name.replace('_', '-')} is {value!r}: give a positive number")
        if self.mib is not None and (self.n_ctx is None or not 0 < self.n_ctx <= MAX_COUNT):
            raise KvtunerError(f"--mib is for 1 to {MAX_COUNT} tokens: add --for-ctx, for example --for-ctx 32768")

    def sizes(self, shape: ModelShape) -> Sizes:
        """Sizes in which layers weigh as in the context that the goal is for, else as in that of ``shape``."""
        return Sizes(shape if self.mib is None else replace(shape, n_ctx=self.n_ctx))

    def budget(self, sizes: Sizes) -> int | None:
        """Bytes as `Sizes` counts them; None where the loss is what is given."""
        if self.mib is not None and self.n_ctx is not None:
            unit = math.gcd(*sizes.shape.cells(ContextSize(self.n_ctx))) or 1
            return math.floor(self.mib * 2**20 / unit)
        return None if self.bits is None else sizes.budget(self.bits)

    @property
    def ceiling(self) -> float:
        """The KLD that a plan may have; infinite where bytes are given."""
        return math.inf if self.max_kld is None else self.max_kld

    def __str__(self) -> str:
        if self.mib is not None:
            return f"{self.mib:g} MiB for {self.n_ctx} tokens"
        return f"{self.bits:g} bits per value" if self.bits is not None else f"a mean KLD of {self.max_kld:g}"
