"""Which layers have which pair, in one line per pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvtuner_gguf.plan.pairs import Pair


def pair_lines(pairs: Mapping[int, Pair]) -> list[str]:
    """``"q8_0/q4_0      layers 0-3,7"`` for each distinct pair, in the order of first use."""
    layers: dict[Pair, list[int]] = {}
    for il, pair in sorted(pairs.items()):
        layers.setdefault(pair, []).append(il)
    return [f"{pair!s:<14} layers {ranges(ils)}" for pair, ils in layers.items()]


def ranges(numbers: Iterable[int]) -> str:
    """Rising numbers in short: 0, 1, 2, 7 is ``"0-2,7"``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
