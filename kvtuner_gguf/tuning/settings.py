"""What a tuning is asked for, checked before anything is loaded, and the facts that its measurements depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import kvtuner_gguf
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.tunable import tuning_obstacle
from kvtuner_gguf.plan.backends import BACKENDS, DEFAULT_BACKEND, Backend
from kvtuner_gguf.plan.centers import DEFAULT_SPAN
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.sizes import Sizes
from kvtuner_gguf.tuning.fixed import check_fixed, with_fixed
from kvtuner_gguf.tuning.goal import DEFAULT_BITS, Goal
from kvtuner_gguf.tuning.windows import WINDOWS, left_at_f16, with_left

if TYPE_CHECKING:
    from kvtuner_gguf.engine.base import Engine
    from kvtuner_gguf.tuning.texts import Texts

METHODS = ("exact", "paper")
PRICES = ("fisher", "kld")
OBJECTIVES = ("kld", "perplexity", "failed")


@dataclass(frozen=True)
class Settings:
    """What `tune` is asked for.

    ``trials``: plans that are judged whole, in a refinement (exact) or in all (paper), by default `Stages.n_trials`.
    ``n_rungs``: types that are measured in every layer. ``n_points``: sizes that the front has. ``objective``: what
    the paper's method minimises, one of `OBJECTIVES`. ``evolve``: trials of a genetic search that begins with the
    exact method's front. ``fixed``: pairs by layer that are not searched. ``ends``: exact ends of every plan.
    ``prices``: one of `PRICES`, by default fisher where the engine has gradients. ``windows``: what becomes of layers
    with a sliding window, one of `WINDOWS`; see `left_at_f16`. ``storage``: where the paper's method searches with
    other workers; it may hold a password.
    """

    goal: Goal = field(default_factory=lambda: Goal(bits=DEFAULT_BITS))
    backend: Backend = BACKENDS[DEFAULT_BACKEND]
    method: str = "exact"
    n_tokens: int = 1024
    n_ctx: int = 512
    seed: int = 0
    trials: int | None = None
    n_rungs: int = 1
    n_points: int = 7
    center: bool = True
    objective: str = "kld"
    evolve: int = 0
    fixed: Mapping[int, Pair] = field(default_factory=dict)
    ends: Ends | None = None
    prices: str | None = None
    windows: str = "auto"
    storage: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES or (self.method == "exact" and self.objective != "kld"):
            raise KvtunerError(f"the objective {self.objective!r} is for --method paper: use kld, or that method")
        if self.objective != "kld" and self.goal.max_kld is not None:
            raise KvtunerError("--max-kld is a bound of the objective kld: give a budget")
        if self.storage is not None and self.method != "paper":
            raise KvtunerError("--storage shares the search of --method paper: leave it out, or take that method")
        if self.prices not in (None, *PRICES):
            raise KvtunerError(f"unknown prices {self.prices!r}: use one of {', '.join(PRICES)}")
        if self.windows not in WINDOWS:
            raise KvtunerError(f"unknown windows {self.windows!r}: use one of {', '.join(WINDOWS)}")
        if self.method not in METHODS:
            raise KvtunerError(f"unknown method {self.method!r}: use one of {', '.join(METHODS)}")
        if self.n_ctx < 16 or self.n_tokens < self.n_ctx:
            raise KvtunerError(
                f"--tokens {self.n_tokens} and --ctx {self.n_ctx}: give at least one context of 16 tokens"
            )
        if self.ends is not None and self.n_ctx <= self.ends.n_positions:
            raise KvtunerError(
                f"--ctx {self.n_ctx} is no more than the {self.ends.n_positions} positions of the exact ends "
                f"{self.ends}: nothing would be read from quantized caches: give more --ctx, or other --ends"
            )
        if self.n_rungs < 1 or (self.trials or 0) < 0 or self.evolve < 0 or self.n_points < 2:
            raise KvtunerError("--rungs must be 1 or more, --trials and --evolve 0 or more, --points 2 or more")

        if 0 < self.evolve <= self.n_points:
            raise KvtunerError(
                f"--evolve {self.evolve} is less than the {self.n_points + 1} plans that it may begin with: give at "
                f"least {self.n_points + 1}, or less --points"
            )

    def span(self, shape: ModelShape) -> int | None:
        """Positions of a block that has a center of its own; None where centers do not turn."""
        return DEFAULT_SPAN if self.center and shape.has_turned else None

    def sizes(self, shape: ModelShape) -> Sizes:
        """Bytes of plans as the goal counts them."""
        return self.goal.sizes(shape, self.ends, self.span(shape))


def check_tunable(shape: ModelShape) -> None:
    """Raise `KvtunerError` where no model of ``shape`` can be tuned."""
    if why := tuning_obstacle(shape):
        raise KvtunerError(why)


def check_goal(settings: Settings, shape: ModelShape) -> None:
    """Raise `KvtunerError` where the model cannot be tuned, or the budget is out of reach of the candidates.

    Before anything is loaded or measured; of a budget that all candidates keep within there is nothing to search for.
    """
    check_tunable(shape)
    check_fixed(settings.fixed, shape)
    sizes = settings.sizes(shape)
    budget = settings.goal.budget(sizes)
    pairs = settings.backend.fitting(shape).pairs()
    left = left_at_f16(settings, shape)
    smallest, largest = sizes.range(with_fixed([pairs] * shape.n_layer, with_left(left, settings.fixed)))
    if budget is not None and not smallest <= budget <= largest:
        what = "the candidates" + " and --fix" * bool(settings.fixed) + " and --windows f16" * (left is not None)
        what += f" with {sizes.beside} for {sizes.n_ctx} tokens" if sizes.beside else ""
        less, remedy = ("less", "raise") if budget < smallest else ("more", "lower")
        option = "--mib" if settings.goal.bits is None else "--bits"
        raise KvtunerError(
            f"{settings.goal} is {less} than the {sizes.bits(smallest):g} to {sizes.bits(largest):g} bits per value of "
            f"{what}: {remedy} {option}, or change --candidates"
        )


def facts_of(engine: Engine, texts: Texts, settings: Settings) -> dict[str, Any]:
    """What a measurement depends on, apart from the shape of the model."""
    return {
        "version": kvtuner_gguf.__version__,
        "engine": engine.name,
        **engine.versions,
        **text_facts(texts, settings),
        "device": engine.device.partition(":")[0],  # one GPU measures as the others do
    }


def identity_of(engine: Engine, facts: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """All that measurements depend on: the ``facts``, what caches are read with, and the shape of the model."""
    return {**facts, **_cache_facts(engine.shape, settings)}


def asked_facts(shape: ModelShape, texts: Texts | None, settings: Settings) -> dict[str, Any]:
    """Those of `identity_of` that are known before there is an engine, and those of the ``texts`` if they are there."""
    of_text = {} if texts is None else text_facts(texts, settings)
    return {"version": kvtuner_gguf.__version__, **of_text, **_cache_facts(shape, settings)}


def text_facts(texts: Texts, settings: Settings) -> dict[str, Any]:
    """What a measurement depends on of ``texts``."""
    return {
        "text": texts.name,
        "text_sha256": texts.sha256,
        "text_tokens": settings.n_tokens // settings.n_ctx * settings.n_ctx,
        "n_ctx": settings.n_ctx,
        "seed": settings.seed,
    }


def _cache_facts(shape: ModelShape, settings: Settings) -> dict[str, Any]:
    ends = None if settings.ends is None else str(settings.ends)
    centering = {"center": settings.center, "center_span": settings.span(shape), "scale": settings.center}
    return {**centering, "ends": ends, "model": shape.to_json()}
