"""What an evaluation is: the tokens that are judged, the caches, and a row of results for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kvtuner_gguf.divergence import Divergence
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape

BASELINE = Pair("f16", "f16")


class Tokenizer(Protocol):
    """What cuts a text into chunks needs of a model."""

    bos: int | None

    def tokenize(self, text: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Row:
    """One cache against the f16 cache. KLDs in nats, `same_top` in percent, `kv_mib` as allocated for the context."""

    name: str
    bits_per_value: float
    kv_bytes_per_token: int
    kld_mean: float
    kld_median: float
    kld_p999: float
    same_top: float
    ppl: float
    ppl_ratio: float
    kv_mib: float


@dataclass(frozen=True)
class Sample:
    """What is evaluated: ``n_chunks`` chunks of ``n_ctx`` tokens from the start of ``text``."""

    text: str
    n_ctx: int = 512
    n_chunks: int = 8

    def __post_init__(self) -> None:
        if self.n_ctx < 4 or self.n_chunks < 1:
            raise KvtunerError(f"{self.n_chunks} chunks of {self.n_ctx} tokens: give at least 1 chunk of 4 tokens")

    def chunks(self, model: Tokenizer) -> list[np.ndarray]:
        """Arrays of ``n_ctx`` tokens; raises `KvtunerError` where the text is too short for all of them."""
        tokens = model.tokenize(self.text)
        if len(tokens) < self.n_chunks * self.n_ctx:
            raise KvtunerError(
                f"the text has {len(tokens)} tokens, less than {self.n_chunks} chunks of {self.n_ctx}: "
                f"give at most --chunks {len(tokens) // self.n_ctx}, a smaller --ctx, or a longer text"
            )
        chunks = [tokens[i * self.n_ctx : (i + 1) * self.n_ctx].copy() for i in range(self.n_chunks)]
        if model.bos is not None:
            for chunk in chunks:
                chunk[0] = model.bos
        return chunks


@dataclass(frozen=True)
class Chunks:
    """A sample of tokens that are there already: ``arrays`` of int32, all of the same length."""

    arrays: Sequence[np.ndarray]

    @property
    def n_ctx(self) -> int:
        return len(self.arrays[0])

    def chunks(self, model: Tokenizer) -> list[np.ndarray]:
        """The arrays; ``model`` is not asked."""
        return list(self.arrays)


def as_plans(caches: Mapping[str, Pair | Plan], shape: ModelShape) -> dict[str, Plan]:
    """A plan for each of ``caches``; raises `KvtunerError` where one does not fit the model."""
    plans = {name: c if isinstance(c, Plan) else Plan.uniform(c, shape.n_layer) for name, c in caches.items()}
    for plan in plans.values():
        plan.check(shape)
    return plans


def make_row(name: str, plan: Plan, shape: ModelShape, result: Divergence, base: Divergence, kv_mib: float) -> Row:
    """The row of one cache, ``result``, beside that of the f16 cache, ``base``."""
    return Row(
        name=name,
        bits_per_value=plan.bits_per_value(shape),
        kv_bytes_per_token=plan.bytes_per_token(shape),
        kld_mean=result.kld_mean,
        kld_median=result.kld_median,
        kld_p999=result.kld_p999,
        same_top=result.same_top,
        ppl=result.ppl,
        ppl_ratio=result.ppl / base.ppl,
        kv_mib=kv_mib,
    )
