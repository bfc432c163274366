"""Made-up attentions, and what they come to in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import gguf
import numpy as np


@dataclass(frozen=True)
class Case:
    """One attention: queries ``[heads, rows, head_size]`` over caches ``[kv_heads, tokens, head_size]``.

    ``cache_type``, ``head_size``, ``queries`` a threadgroup takes and ``elements`` (NE, of a cache row a lane works on)
    choose the vector kernel; ``elements`` 0 is the one without a suffix. Its work is spread over ``threadgroups``, 1 or
    32.
    """

    cache_type: str = "f16"
    head_size: int = 64
    heads: int = 4
    kv_heads: int = 2
    rows: int = 1
    tokens: int = 96
    mask: bool = True
    sinks: bool = False
    soft_cap: float = 0.0
    queries: int = 1
    elements: int = 0
    threadgroups: int = 1

    def kernel(self, kind: str) -> str:
        """Its host name; ``kind`` is ``vec`` or ``matrix``."""
        suffix = f"_q{self.queries}_ne{self.elements}" if self.elements else ""
        middle = "_vec" if kind == "vec" else ""
        return f"kernel_flash_attn_ext{middle}_{self.cache_type}_dk{self.head_size}_dv{self.head_size}{suffix}"


@dataclass
class Inputs:
    """The tensors of a `Case`: ``k`` and ``v`` as bytes of the cache type, the mask in f16, sinks in f32."""

    case: Case
    q: np.ndarray = field(init=False)
    k: np.ndarray = field(init=False)
    v: np.ndarray = field(init=False)
    mask: np.ndarray = field(init=False)
    sinks: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        case, rng = self.case, np.random.default_rng(7)
        self.q = rng.standard_normal((case.heads, case.rows, case.head_size), dtype=np.float32)
        caches = rng.standard_normal((2, case.kv_heads, case.tokens, case.head_size), dtype=np.float32)
        quantize = gguf.GGMLQuantizationType[case.cache_type.upper()]
        self.k, self.v = (gguf.quants.quantize(cache, quantize).view(np.uint8) for cache in caches)
        past = np.arange(case.tokens) > case.tokens - case.rows + np.arange(case.rows)[:, None]
        biases = (0.1 * rng.standard_normal(past.shape)).astype(np.float16)
        self.mask = np.where(past, np.float16("-inf"), biases)
        self.sinks = rng.standard_normal(case.heads, dtype=np.float32)

    def expected(self) -> np.ndarray:
        """The result ``[rows, heads, head_size]`` in float64."""
        case, kind = self.case, gguf.GGMLQuantizationType[self.case.cache_type.upper()]
        repeats = case.heads // case.kv_heads
        stored = [c.view(np.float16) if case.cache_type == "f16" else c for c in (self.k, self.v)]
        k, v = (gguf.quants.dequantize(c, kind).astype(np.float64).repeat(repeats, 0) for c in stored)
        scores = self.q.astype(np.float64) @ k.transpose(0, 2, 1) / np.sqrt(case.head_size)
        if case.soft_cap:
            scores = case.soft_cap * np.tanh(scores / case.soft_cap)
        if case.mask:
            scores = scores + self.mask.astype(np.float64)
        sinks = self.sinks[:, None, None] if case.sinks else np.full((case.heads, 1, 1), -np.inf)
        weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), sinks))
        total = weights.sum(-1, keepdims=True) + np.exp(sinks - np.maximum(scores.max(-1, keepdims=True), sinks))
        return (weights / total @ v).transpose(1, 0, 2)


def nmse(result: np.ndarray, expected: np.ndarray) -> float:
    """The squared error over the squares of what is expected; infinite where a value is no number."""
    error = ((result - expected) ** 2).sum() / (expected**2).sum()
    return float(error) if np.isfinite(error) else float("inf")
