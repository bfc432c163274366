"""Made-up attentions over caches of a plan, and what they come to in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.metal.cached import random_rows, values_of

SPAN = 24  # tokens of a block of positions, in cases with centers


@dataclass(frozen=True)
class PlanCase:
    """One attention: queries ``[streams, rows, heads, size_k]`` over caches ``[streams, tokens, kv_heads, size]``.

    The last ``exact`` tokens of each stream, and its first, are read from rows of their own, of ``exact_k`` and
    ``exact_v``. With ``centers`` keys are less of the center of their block of positions. Tokens are shared out to
    ``parts``, 1 or 32, of ``simdgroups`` each. Queries are rotated before, and the result behind: so many values at a
    time.
    """

    type_k: str = "f16"
    type_v: str = "f16"
    size_k: int = 128
    size_v: int = 0
    heads: int = 4
    kv_heads: int = 2
    rows: int = 1
    tokens: int = 96
    streams: int = 1
    mask: bool = True
    sinks: bool = False
    soft_cap: float = 0.0
    max_bias: float = 0.0
    exact: int = 0
    exact_k: str = "f16"
    exact_v: str = "f16"
    centers: bool = False
    parts: int = 1
    simdgroups: int = 2
    q_rotation: int = 0
    out_rotation: int = 0

    @property
    def head_sizes(self) -> tuple[int, int]:
        """Of a key and of a value."""
        return self.size_k, self.size_v or self.size_k

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.heads // self.kv_heads

    @property
    def slots(self) -> int:
        """Exact tokens of a stream, and a place that is not used."""
        return self.exact + 2 if self.exact else 0


def rotated(rows: np.ndarray, n: int) -> np.ndarray:
    """The orthonormal Walsh-Hadamard transform of ``n`` values of ``rows`` at a time; 0: none."""
    if n == 0:
        return rows
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    return (rows.reshape(*rows.shape[:-1], -1, n) @ matrix / np.sqrt(n)).reshape(rows.shape)


@dataclass
class PlanInputs:
    """The tensors of a `PlanCase`; caches as bytes of their types."""

    case: PlanCase
    q: np.ndarray = field(init=False)
    k: np.ndarray = field(init=False)
    v: np.ndarray = field(init=False)
    mask: np.ndarray = field(init=False)
    sinks: np.ndarray = field(init=False)
    exact_k: np.ndarray = field(init=False)
    exact_v: np.ndarray = field(init=False)
    exact_mask: np.ndarray = field(init=False)
    centers: np.ndarray = field(init=False)
    exact_rows: np.ndarray = field(init=False)
    exact_cells: np.ndarray = field(init=False)
    cell_blocks: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        case, rng = self.case, np.random.default_rng(7)
        size_k, size_v = case.head_sizes
        self.q = rng.standard_normal((case.streams, case.rows, case.heads, size_k), dtype=np.float32)
        shape = (case.streams, case.tokens, case.kv_heads)
        self.k = random_rows(case.type_k, (*shape, size_k), rng)
        self.v = random_rows(case.type_v, (*shape, size_v), rng)
        past = np.arange(case.tokens) > case.tokens - case.rows + np.arange(case.rows)[:, None]
        biases = (0.1 * rng.standard_normal((case.streams, *past.shape))).astype(np.float16)
        self.mask = np.where(past, np.float16("-inf"), biases)
        self.sinks = rng.standard_normal(case.heads, dtype=np.float32)
        self._set_exact(rng)
        n_blocks = case.tokens // SPAN + 1
        self.centers = rng.standard_normal((n_blocks, case.kv_heads * size_k)).astype(np.float16)
        self.cell_blocks = np.broadcast_to(np.arange(case.tokens) // SPAN, (case.streams, case.tokens))

    def _set_exact(self, rng: np.random.Generator) -> None:
        """Moves what queries see of the first and the last tokens from the mask of the cache to that of the rows."""
        case = self.case
        size_k, size_v = case.head_sizes
        n_rows, slots = case.streams * case.slots, case.slots
        self.exact_k = random_rows(case.exact_k, (n_rows, case.kv_heads, size_k), rng)
        self.exact_v = random_rows(case.exact_v, (n_rows, case.kv_heads, size_v), rng)
        self.exact_rows = np.full(n_rows, -1, np.int32)
        self.exact_cells = np.zeros(n_rows, np.int64)
        self.exact_mask = np.full((case.streams, case.rows, n_rows), np.float16("-inf"))
        order = rng.permutation(n_rows)
        for stream in range(case.streams if case.exact else 0):
            first = stream * slots
            cells = np.r_[0, case.tokens - case.exact : case.tokens]
            at = slice(first, first + len(cells))
            self.exact_rows[at], self.exact_cells[at] = order[at], cells
            self.exact_mask[stream, :, at] = self.mask[stream][:, cells]
            self.mask[stream][:, cells] = np.float16("-inf")

    def integers(self) -> tuple[np.ndarray, dict[str, int]]:
        """As a node has them, and where parts of them begin."""
        parts = {"rows": self.exact_rows}
        if self.case.centers:
            parts["slot_blocks_at"] = (self.exact_cells // SPAN).astype(np.int32)
            parts["cell_blocks_at"] = self.cell_blocks.ravel().astype(np.int32)
        if self.case.exact:
            parts["first_slots_at"] = np.arange(self.case.streams, dtype=np.int32) * self.case.slots
        begins = np.cumsum([0, *(len(part) for part in parts.values())])
        return np.concatenate(list(parts.values())), dict(zip(parts, map(int, begins), strict=False))

    def expected(self) -> np.ndarray:
        """The result ``[streams, rows, heads, size_v]`` in float64."""
        case = self.case
        k, v = self._with_exact()
        k, v = (side.repeat(case.group, 2) for side in (k, v))
        q = rotated(self.q.astype(np.float64), case.q_rotation)
        scores = np.einsum("sqhd,sthd->shqt", q, k) / np.sqrt(case.size_k)
        if case.soft_cap:
            scores = case.soft_cap * np.tanh(scores / case.soft_cap)
        if case.mask:
            scores = scores + self._slopes()[:, None, None] * self._whole_mask()[:, None]
        sinks = self.sinks[:, None, None] if case.sinks else np.full((case.heads, 1, 1), -np.inf)
        most = np.maximum(scores.max(-1, keepdims=True), sinks)
        weights = np.exp(scores - most)
        weights /= weights.sum(-1, keepdims=True) + np.exp(sinks - most)
        return rotated(np.einsum("shqt,sthd->sqhd", weights, v), case.out_rotation)

    def _with_exact(self) -> tuple[np.ndarray, np.ndarray]:
        case = self.case
        k, v = values_of(case.type_k, self.k), values_of(case.type_v, self.v)
        rows = [values_of(case.exact_k, self.exact_k), values_of(case.exact_v, self.exact_v)] if case.exact else []
        for slot in np.flatnonzero(self.exact_rows >= 0):
            stream, cell, row = slot // case.slots, self.exact_cells[slot], self.exact_rows[slot]
            k[stream, cell], v[stream, cell] = rows[0][row], rows[1][row]
        if case.centers:
            k += self.centers.astype(np.float64)[self.cell_blocks].reshape(k.shape)
        return k, v

    def _whole_mask(self) -> np.ndarray:
        mask = self.mask.astype(np.float64)
        for slot in np.flatnonzero(self.exact_rows >= 0):
            stream = slot // self.case.slots
            mask[stream, :, self.exact_cells[slot]] = self.exact_mask[stream, :, slot]
        return mask

    def _slopes(self) -> np.ndarray:
        case, head = self.case, np.arange(self.case.heads)
        n = 2 ** int(np.log2(case.heads))
        return 2 ** (-case.max_bias * np.where(head < n, (head + 1) / n, (2 * (head - n) + 1) / (2 * n)))
