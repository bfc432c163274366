"""Which models the reference in torch has as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtuner_gguf.gguffile.reader import GgufHeader

# architectures whose attention it has
OF_TORCH = ("llama", "qwen2", "qwen3")


def is_exact_in_torch(headers: Sequence[GgufHeader]) -> bool:
    """Whether torch computes the model of these files, one a shard, without an approximation."""
    first = headers[0]
    scaling = first.get(f"{first.architecture}.rope.scaling.type")
    return first.architecture in OF_TORCH and len(headers) == 1 and scaling in (None, "none")
