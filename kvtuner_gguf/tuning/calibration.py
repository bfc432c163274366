"""Calibration text as chunks of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kvtuner_gguf.tuning.texts import Texts, read_text, too_short

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
        raise too_short(path, n_chunks, n_ctx, f"one has {len(tokens)}")
    return tokens[:n_ctx]
