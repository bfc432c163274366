"""Cache types as people write them: upper case and spaces around a name do not count, and a typo is told.

Files are read strictly, by the names alone.
"""

from __future__ import annotations

from difflib import get_close_matches

from kvtuner_gguf.errors import KvtunerError, quoted
from kvtuner_gguf.plan.cachetypes import CACHE_TYPES, CacheType
from kvtuner_gguf.plan.pairs import Pair


def typed_type(text: str) -> CacheType:
    """The type that ``text`` names; raises `KvtunerError`, which says what name is like it, for anything else."""
    name = text.strip().lower()
    if name in CACHE_TYPES:
        return CACHE_TYPES[name]
    like = get_close_matches(name.replace("o", "0"), CACHE_TYPES, n=1)  # no name has an o
    guess = f"did you mean {like[0]}? There are" if like else "use one of"
    raise KvtunerError(f"unknown cache type {quoted(text.strip())}: {guess} {', '.join(CACHE_TYPES)}")


def typed_pair(text: str) -> Pair:
    """``"q8_0/q4_0"`` is K q8_0 and V q4_0; one name alone stands for both."""
    names = text.split("/")
    if len(names) > 2 or "," in text:
        raise KvtunerError(f"{quoted(text)} is no pair of cache types: write K/V, for example q8_0/q4_0")
    return Pair(typed_type(names[0]).name, typed_type(names[-1]).name)


def typed_list(text: str) -> tuple[str, ...]:
    """The names in ``"q8_0, q4_0"``."""
    return tuple(typed_type(name).name for name in text.split(","))
