"""What llama.cpp says about the caches it has made: in its start-up log and in the server's ``/props``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair

_PAIR_LINE = re.compile(r"kvtuner: (\w+/\w+)\s+layers ([\d,-]+)\s*$")
_TOTAL_LINE = re.compile(r"kvtuner: ([\d.]+) bits per value, ([\d.]+) MiB ")


@dataclass(frozen=True)
class CacheReport:
    """The pair of each layer that has a cache, by layer; the mean true bits per value; the size of all caches."""

    pairs: Mapping[int, Pair]
    bits_per_value: float
    mib: float

    @classmethod
    def from_log(cls, log: str) -> CacheReport:
        """The last report in ``log``: a tool may make contexts for measuring before the one that it uses."""
        report, pairs = None, {}
        for line in log.splitlines():
            if found := _PAIR_LINE.search(line):
                pairs |= dict.fromkeys(_layers(found[2]), Pair.parse(found[1]))
            elif found := _TOTAL_LINE.search(line):
                report, pairs = cls(dict(sorted(pairs.items())), float(found[1]), float(found[2])), {}
        if report is None:
            raise KvtunerError("the start-up log has no report of a plan: use an annotated model and the patched build")
        return report

    @classmethod
    def from_props(cls, props: Mapping[str, Any]) -> CacheReport:
        """From the JSON that ``GET /props`` returns."""
        cache = props.get("kv_cache")
        if not isinstance(cache, Mapping):
            raise KvtunerError("the server does not report its KV cache: use the llama-server of the patched build")
        return cls(layer_pairs(cache), cache["bits_per_value"], cache["bytes"] / 2**20)


def layer_pairs(report: Mapping[str, Any]) -> dict[int, Pair]:
    """The pairs in ``report["layers"]``, a list of objects with ``layer``, ``k`` and ``v``."""
    return {entry["layer"]: Pair(entry["k"], entry["v"]) for entry in report["layers"]}


def _layers(ranges: str) -> Iterator[int]:
    """``"0-3,7"`` is 0, 1, 2, 3 and 7."""
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
