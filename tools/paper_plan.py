"""The table of 3.25 payload bits that KVTuner publishes for Llama-3.1-8B (ICML 2025), on the types of this project."""

from __future__ import annotations

from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

PAPER_K = (2, 4, 4, 4, 2, 4, 4, 4, 4, 4, 4, 4, 4, 8, 4, 4, 4, 8, 4, 4, 4, 4, 4, 4, 4, 2, 4, 2, 4, 4, 4, 4)
PAPER_V = (2, 4, 4, 4, 2, 2, 2, 4, 2, 2, 2, 2, 2, 4, 2, 2, 2, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 4, 2, 4)
TYPE_OF_BITS = {2: "q2_nl", 4: "q4_0", 8: "q8_0"}


def paper_plan(n_layer: int) -> Plan:
    """For a model of so many layers: each has the types of the layer that is as deep."""
    nearest = [round(il * (len(PAPER_K) - 1) / (n_layer - 1)) for il in range(n_layer)]
    return Plan(tuple(Pair(TYPE_OF_BITS[PAPER_K[i]], TYPE_OF_BITS[PAPER_V[i]]) for i in nearest))
