"""Calibration text as chunks of tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kvtuner_gguf.errors import KvtunerError

# enough for any chunk of a natural text: a token is rarely longer
BYTES_PER_TOKEN = 12


@dataclass(frozen=True)
class Calibration:
    """``tuning`` and ``held_out``: token ids [chunks, context], from places spread over the text, never overlapping."""

    name: str
    sha256: str
    tuning: Tensor
    held_out: Tensor

    @property
    def n_tokens(self) -> int:
        return self.tuning.numel()


@dataclass(frozen=True)
class Texts:
    """Texts to calibrate on, and how much each counts. Raises `KvtunerError` for a weight that is not above 0."""

    paths: tuple[Path, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        for path, weight in zip(self.paths, self.weights, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                raise KvtunerError(f"{path} has the weight {weight!r}: give a number above 0")

    @property
    def name(self) -> str:
        """Their file names, with the weights where they differ."""
        if len(set(self.weights)) == 1:
            return " + ".join(path.name for path in self.paths)
        return " + ".join(f"{weight:g} {path.name}" for path, weight in zip(self.paths, self.weights, strict=True))

    @property
    def sha256(self) -> str:
        """Of the text, or of the hashes of several; raises `KvtunerError` where one cannot be read."""
        hashes = [hashlib.sha256(read_text(path)).hexdigest() for path in self.paths]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def shares(self, n: int) -> list[int]:
        """``n`` things, at least one for each text, parted by the weights."""
        if n < len(self.paths):
            raise KvtunerError(f"{len(self.paths)} texts for {n} chunks: give more --tokens, or a smaller --ctx")
        wanted = [n * weight / sum(self.weights) for weight in self.weights]
        counts = [max(1, int(share)) for share in wanted]
        while sum(counts) != n:
            step = 1 if sum(counts) < n else -1
            room = [i for i, count in enumerate(counts) if count + step >= 1]
            counts[max(room, key=lambda i: (step * (wanted[i] - counts[i]), -i))] += step
        return counts


def calibrate_texts(
    texts: Texts, tokenize: Callable[[str], list[int]], n_tokens: int, n_ctx: int, seed: int = 0
) -> Calibration:
    """`calibrate` of several texts, whose weights part the chunks between them."""
    counts = texts.shares(max(1, n_tokens // n_ctx))
    parts = [
        calibrate(path, tokenize, count * n_ctx, n_ctx, seed) for path, count in zip(texts.paths, counts, strict=True)
    ]
    tuning, held_out = (torch.cat([getattr(part, name) for part in parts]) for name in ("tuning", "held_out"))
    return Calibration(texts.name, texts.sha256, tuning, held_out)


def calibrate(
    path: Path, tokenize: Callable[[str], list[int]], n_tokens: int, n_ctx: int, seed: int = 0
) -> Calibration:
    """Cut ``n_tokens`` for tuning and as many to judge by out of the text at ``path``.

    Every chunk starts at a place of its own: the text is divided into as many stretches as there are chunks, and the
    seed decides where in its stretch a chunk starts and which chunks are held out.
    Raises `KvtunerError` where the text cannot be read or is too short.
    """
    raw = read_text(path)
    n_chunks = max(1, n_tokens // n_ctx)
    generator = torch.Generator().manual_seed(seed)
    stretch = len(raw) // (2 * n_chunks)
    need = n_ctx * BYTES_PER_TOKEN
    chunks = []
    for i in range(2 * n_chunks):
        room = max(0, stretch - need)
        start = i * stretch + int(torch.randint(room + 1, (), generator=generator))
        text = raw[start : start + min(need, stretch)].decode("utf-8", errors="ignore")
        chunks.append(_chunk(tokenize(text), n_ctx, path, 2 * n_chunks))
    order = torch.randperm(2 * n_chunks, generator=generator).tolist()
    tensors = torch.tensor([chunks[i] for i in order])
    return Calibration(path.name, hashlib.sha256(raw).hexdigest(), tensors[:n_chunks], tensors[n_chunks:])


def _chunk(tokens: list[int], n_ctx: int, path: Path, n_chunks: int) -> list[int]:
    if len(tokens) < n_ctx:
        raise KvtunerError(
            f"{path}: too short for {n_chunks} chunks of {n_ctx} tokens (one has {len(tokens)}): "
            "give a longer text, or less --tokens or --ctx"
        )
    return tokens[:n_ctx]


def read_text(path: Path) -> bytes:
    """The bytes of a text; raises `KvtunerError` where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as err:
        raise KvtunerError(f"cannot read {path}: {err.strerror}; check the path") from err
