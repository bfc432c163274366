"""One worker of a shared search over a made-up loss: STORAGE, TRIALS, and the SECONDS that a plan takes.

Prints a line for each plan that it measures, then its front.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.tuning.cluster import Group, Groups
from kvtuner_gguf.tuning.genetic import GeneticSettings, ladder
from kvtuner_gguf.tuning.together import SharedStudy, search_together

N_LAYER = 5
PAIRS = tuple(Pair.parse(text) for text in ("q4_0", "q4_0/q8_0", "q8_0/q4_0", "q8_0"))
GROUPS = Groups(ModelShape("llama", (2,) * N_LAYER, 64, 64), tuple(Group((il,), PAIRS) for il in range(N_LAYER)))
TUNING = {"text": "a.txt", "seed": 3}


def loss(pairs: Sequence[Pair]) -> float:
    return sum((il + 1) / (1 + PAIRS.index(pair)) for il, pair in enumerate(pairs))


def join(storage: str, n_trials: int, seconds: float = 0.0, seen: list | None = None) -> list[str]:
    """The front, a plan a line."""

    def measure(pairs: Sequence[Pair]) -> float:
        print("measure", *pairs, flush=True)
        if seen is not None:
            seen.append(tuple(pairs))
        time.sleep(seconds)
        return loss(pairs)

    settings = GeneticSettings(n_trials, population=8, seed=3, max_bits=8.0)
    points = search_together(SharedStudy(storage), TUNING, GROUPS, measure, settings, ladder(GROUPS, 4))
    return [f"{point.loss} {' '.join(map(str, point.pairs))}" for point in points]


if __name__ == "__main__":
    storage, n_trials, seconds = sys.argv[1:]
    for line in join(storage, int(n_trials), float(seconds)):
        print("front", line)
