"""The whole offline stage: calibration -> profile -> candidates -> prices -> plan, verified on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

import kvtuner_gguf
from kvtuner_gguf.cachetypes import Pair, cache_type
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan import ModelShape, Plan
from kvtuner_gguf.tuning.calibration import Calibration, calibrate
from kvtuner_gguf.tuning.centering import measure_centers
from kvtuner_gguf.tuning.divergence import Judge
from kvtuner_gguf.tuning.pricing import Prices, one_sided, price
from kvtuner_gguf.tuning.pruning import prune
from kvtuner_gguf.tuning.reference import Reference
from kvtuner_gguf.tuning.search import Sizes, refine, solve
from kvtuner_gguf.tuning.sensitivity import Profile, profile

DEFAULT_CANDIDATES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")

Stage = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress display with a title; gives a callback of steps done and steps in all."""


@dataclass(frozen=True)
class Settings:
    """What `tune` is asked for. ``bits`` are true bits per value; ``trials`` are trades judged by the whole plan."""

    bits: float = 6.5
    n_tokens: int = 1024
    n_ctx: int = 512
    candidates: tuple[str, ...] = DEFAULT_CANDIDATES
    seed: int = 0
    trials: int = 40
    center: bool = True

    def __post_init__(self) -> None:
        kinds = [cache_type(name) for name in self.candidates]
        if not kinds or len(set(self.candidates)) != len(kinds):
            raise KvtunerError(f"the candidates {', '.join(self.candidates)!r}: name each type once, at least one")
        low, high = (pick(kind.bits_per_value for kind in kinds) for pick in (min, max))
        if not low <= self.bits <= high:
            raise KvtunerError(f"--bits {self.bits:g} is outside the candidates' {low:g} to {high:g}: change either")
        if self.n_ctx < 16 or self.n_tokens < self.n_ctx:
            raise KvtunerError(
                f"--tokens {self.n_tokens} and --ctx {self.n_ctx}: give at least one context of 16 tokens"
            )


@dataclass(frozen=True)
class Tuned:
    """The plan with what led to it. KLDs are means in nats per token."""

    plan: Plan
    profile: Profile
    prices: Prices
    kld_tuning: float
    kld_held_out: float


def tune(model: Path, shape: ModelShape, text: Path, settings: Settings, stage: Stage | None = None) -> Tuned:
    """Search a plan for ``model`` on ``text``; the same settings give the same plan.

    Raises `KvtunerError` where the model cannot be loaded or no plan fits.
    """
    stage = stage or (lambda title: nullcontext(lambda done, total: None))
    torch.manual_seed(settings.seed)
    _check_blocks(shape, settings.candidates)
    with stage("load the reference model"):
        reference = Reference(model, shape.architecture)
        texts = calibrate(text, reference.tokenize, settings.n_tokens, settings.n_ctx, settings.seed)
    provenance = _provenance(settings, texts)
    centers = None
    if settings.center:
        with stage("center keys") as progress:
            centers, spread = measure_centers(reference, texts.tuning, progress=progress)
        provenance["keys"] = spread.to_json()
        reference.cache = replace(reference.cache, centers=centers)
    pairs = [Pair(k, v) for k in settings.candidates for v in settings.candidates]
    with stage("profile") as progress:
        errors = [*pairs, *one_sided(settings.candidates)]
        profiled = profile(reference, texts.tuning, errors, shape, provenance, progress)
    candidates = _candidates(profiled, pairs)
    judge = Judge(reference, texts.tuning)
    with stage("price layers") as progress:
        prices = price(judge, profiled, settings.candidates, progress)
    sizes = Sizes(shape)
    budget = sizes.budget(settings.bits)
    start = solve(prices, candidates, sizes, budget)
    with stage("refine the plan") as progress:
        found, kld = refine(judge, start, prices, candidates, sizes, budget, settings.trials, progress)
    centers = centers.of_quantized(found) if centers else None
    reference.cache = replace(reference.cache, centers=centers)
    with stage("verify on held-out text"):
        held_out = Judge(reference, texts.held_out).kld(found)
    provenance |= {
        "kld_tuning": kld,
        "kld_mean": held_out.mean().item(),
        "kld_median": held_out.median().item(),
        "kld_priced": prices.plan(found),
        "kld_priced_before_refining": prices.plan(start),
    }
    return Tuned(Plan(found, shape, provenance, centers), profiled, prices, kld, provenance["kld_mean"])


def _candidates(profiled: Profile, pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pruned pairs of each layer, without the one-sided ones that only serve the prices."""
    wanted = set(pairs)
    layers = tuple({pair: errors for pair, errors in layer.items() if pair in wanted} for layer in profiled.layers)
    return [list(layer) for layer in prune(Profile(profiled.model, layers))]


def _check_blocks(shape: ModelShape, names: Sequence[str]) -> None:
    for name in names:
        Plan.uniform(Pair(name, name), shape.n_layer).check(shape)


def _provenance(settings: Settings, texts: Calibration) -> dict[str, Any]:
    return {
        "version": kvtuner_gguf.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "text": texts.name,
        "text_sha256": texts.sha256,
        "text_tokens": texts.n_tokens,
        "n_ctx": settings.n_ctx,
        "seed": settings.seed,
        "candidates": list(settings.candidates),
        "bits": settings.bits,
    }
