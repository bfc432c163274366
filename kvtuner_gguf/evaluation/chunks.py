"""The tokens that an evaluation is on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.assets import JUDGING_TEXT, fetch_text


class Tokenizer(Protocol):
    """What cuts a text into chunks needs of a model."""

    bos: int | None

    def tokenize(self, text: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Sample:
    """What is evaluated: ``n_chunks`` chunks of ``n_ctx`` tokens from the start of ``text``.

    The first token of every chunk is the first in the cache, and stands at position ``start_pos``.
    """

    text: str
    n_ctx: int = 512
    n_chunks: int = 8
    start_pos: int = 0

    def __post_init__(self) -> None:
        if self.n_ctx < 4 or self.n_chunks < 1:
            raise KvtunerError(f"{self.n_chunks} chunks of {self.n_ctx} tokens: give at least 1 chunk of 4 tokens")
        if self.start_pos < 0:
            raise KvtunerError(f"chunks start at position {self.start_pos}: give 0 or more")

    def chunks(self, model: Tokenizer) -> list[np.ndarray]:
        """Arrays of ``n_ctx`` tokens; raises `KvtunerError` where the text is too short for all of them."""
        tokens = model.tokenize(self.text)
        if len(tokens) < self.n_chunks * self.n_ctx:
            n_chunks = len(tokens) // self.n_ctx
            fewer = f"give at most --chunks {n_chunks}, a smaller" if n_chunks else "give a smaller"
            raise KvtunerError(
                f"the text has {len(tokens)} tokens, less than {self.n_chunks} chunks of {self.n_ctx}: "
                f"{fewer} --ctx, or a longer text"
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


def read_text(path: Path | None) -> str:
    """The text of the UTF-8 file at ``path``, or else the pinned one; raises `KvtunerError` where it cannot be read."""
    path = path or fetch_text(JUDGING_TEXT)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise KvtunerError(f"cannot read {path} as UTF-8 text ({err}): give another --text") from err
