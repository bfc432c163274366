"""The texts that a model is calibrated on, as they are named: nothing of them is cut into tokens yet."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.inputs import unreadable


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

    def check_long_enough(self, n_tokens: int, n_ctx: int) -> None:
        """Raise `KvtunerError` for a text that is too short even if each byte of it is a token, or is no UTF-8.

        Such a text need not wait for the tokenizer of a model to be told so.
        """
        for path, count in zip(self.paths, self.shares(max(1, n_tokens // n_ctx)), strict=True):
            n_bytes = len(read_utf8(path))
            if n_bytes // (2 * count) + 1 < n_ctx:  # tokenizers may put a space in front
                raise too_short(path, 2 * count, n_ctx, f"it has {n_bytes} bytes")


def too_short(path: Path, n_chunks: int, n_ctx: int, found: str) -> KvtunerError:
    """What to raise for a text of which no ``n_chunks`` of ``n_ctx`` tokens can be cut."""
    return KvtunerError(
        f"{path}: too short for {n_chunks} chunks of {n_ctx} tokens ({found}): "
        "give a longer text, or less --tokens or --ctx"
    )


def read_utf8(path: Path) -> bytes:
    """The bytes of a text; raises `KvtunerError` where it cannot be read, or is none."""
    raw = read_text(path)
    try:
        raw.decode()
    except UnicodeDecodeError as err:
        raise KvtunerError(f"{path}: byte {err.start} is no UTF-8: give a text, converted to UTF-8") from err
    return raw


def read_text(path: Path) -> bytes:
    """The bytes of a text; raises `KvtunerError` where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as err:
        why = unreadable(Path(path)) or f"{err.strerror}; check the path"
        raise KvtunerError(f"cannot read {path}: {why}") from err
