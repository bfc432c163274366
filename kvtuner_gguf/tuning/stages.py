"""The stages of a tuning, each of which does what it needs of those before.

What a stage has finished is kept in the folder of the tuning (`kvtuner_gguf.tuning.work`) and read back from there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch

from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.plan.backends import of_types
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.pairs import F16, Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.calibration import calibrate_texts
from kvtuner_gguf.tuning.center import measure_centers
from kvtuner_gguf.tuning.cluster import Groups, cluster
from kvtuner_gguf.tuning.crew import Asked, Bench, Crew
from kvtuner_gguf.tuning.fisher import fisher_prices
from kvtuner_gguf.tuning.fixed import check_fixed, fixed_facts, with_fixed
from kvtuner_gguf.tuning.given import can_leave, check_given, types_given
from kvtuner_gguf.tuning.judges import ErrorJudge
from kvtuner_gguf.tuning.prices import Prices, price, priced_pairs
from kvtuner_gguf.tuning.profile import Profile
from kvtuner_gguf.tuning.profiling import profile
from kvtuner_gguf.tuning.prune import CAUTIOUS, PAPER, Candidates, prune, prune_by_prices
from kvtuner_gguf.tuning.scale import measure_scales
from kvtuner_gguf.tuning.settings import Settings, facts_of, identity_of
from kvtuner_gguf.tuning.texts import Texts
from kvtuner_gguf.tuning.windows import left_at_f16, left_facts, with_left
from kvtuner_gguf.tuning.work import Work

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Opens a progress display with a title; gives a callback of steps done and steps in all."""

PAPER_TRIALS, KLD_TRIALS, FISHER_TRIALS = 200, 8, 4


class Stages:
    """Those of the model of ``engine`` on ``text``, and what they measure.

    Raises `KvtunerError` where the model cannot be loaded, or ``folder`` holds another tuning.
    """

    def __init__(
        self,
        engine: Engine,
        text: Texts,
        settings: Settings,
        folder: Path | None = None,
        fresh: bool = False,
        stage: Stage | None = None,
        crew: Crew | None = None,
    ) -> None:
        check_fixed(settings.fixed, engine.shape)
        self.engine, self.settings = engine, settings
        self.show: Stage = stage or (lambda title: nullcontext(lambda done, total: None))
        self.backend, self.left = settings.backend.fitting(engine.shape), left_at_f16(settings, engine.shape)
        self.facts = facts_of(engine, text, settings)
        self.work = Work(folder, identity_of(engine, self.facts, settings), fresh)
        torch.manual_seed(settings.seed)
        with self.show("load the reference model"):
            tokens = (settings.n_tokens, settings.n_ctx, settings.seed)
            self.texts = calibrate_texts(text, engine.tokenize, *tokens)
        self.centers = self._center() if settings.center else None
        self.scales = self._scale() if settings.center else None
        self.bench = Bench(engine, self.texts.tuning, self.centers, settings.ends, self.scales)
        self.ledger, self._crew = self.bench.ledger(self.work.journal), crew or Crew()

    def ahead(self, ask: Callable[[ErrorJudge], object], progress: Progress) -> None:
        """Have several devices measure the plans for which ``ask`` asks a judge, whatever that answers."""
        if self._crew:
            asked = Asked()
            ask(asked)
            self._crew.klds(self.bench, asked.plans, self.ledger, progress)

    def take(self, profile: Profile, candidates: Candidates, groups: Groups | None = None) -> None:
        """Go on from stages that were run before, for this model and these texts; the types are those of the profile.

        Raises `KvtunerError` where they are of another model or text.
        """
        for name, given in (("profile", profile), ("candidates", candidates), ("groups", groups)):
            if given is not None:
                check_given(name, given, self.engine, self.facts)
        if self.settings.windows == "auto" and not can_leave(profile, groups):
            self.left = None
        self.backend = of_types(types_given(profile, groups, self.fixed))
        self.profile, self.candidates = profile, self._with_fixed(candidates)
        if groups is not None:
            self.groups = groups

    @cached_property
    def noise_floor(self) -> float:
        """The mean KLD in nats between two runs of the tuning text that should be alike; 0 by an exact engine."""
        if self.engine.is_exact:
            return 0.0
        with self.show("measure the noise floor"):
            return self.work.journal.remember("noise floor", lambda: self.engine.noise_floor(self.texts.tuning))

    def noise(self, one: Sequence[Pair], other: Sequence[Pair]) -> float:
        """What a plan must win over another one to be preferred, besides the share that is always asked for."""
        return 0.0 if self.engine.is_exact else max(self.noise_floor, self.ledger.paired_error(one, other))

    @property
    def fixed(self) -> dict[int, Pair]:
        """The pairs of layers that are not searched."""
        return with_left(self.left, self.settings.fixed)

    @property
    def by_fisher(self) -> bool:
        """Whether layers are priced without measuring plans, and without a profile."""
        return (self.settings.prices or ("fisher" if self.engine.has_gradients else "kld")) == "fisher"

    @property
    def n_trials(self) -> int:
        """Those asked for. By default few after a Fisher pass, whose prices leave little to refine."""
        if self.settings.trials is not None:
            return self.settings.trials
        return PAPER_TRIALS if self.settings.method == "paper" else FISHER_TRIALS if self.by_fisher else KLD_TRIALS

    def _center(self) -> Centers | None:
        """The centers of the keys, from the tuning text."""
        plan = self.work.stage("centers", Plan.from_json, self._measure_centers)
        self.facts["keys"] = plan.provenance["keys"]
        return plan.centers

    def _measure_centers(self) -> Plan:
        with self.show("center keys") as progress:
            centers, spread = measure_centers(self.engine, self.texts.tuning, progress=progress)
        pairs = (F16,) * self.engine.shape.n_layer
        return Plan(pairs, self.engine.shape, {**self.facts, "keys": spread.to_json()}, centers)

    def _scale(self) -> Scales | None:
        """The scales of the keys, likewise."""
        return self.work.stage("scales", Plan.from_json, self._measure_scales).scales

    def _measure_scales(self) -> Plan:
        with self.show("scale keys") as progress:
            scales = measure_scales(self.engine, self.texts.tuning, self.centers, self.settings.ends, progress)
        pairs = (F16,) * self.engine.shape.n_layer
        return Plan(pairs, self.engine.shape, self.facts, scales=scales)

    @cached_property
    def profile(self) -> Profile:
        """The errors of every candidate pair in every layer."""
        fixed = self.fixed.values()
        pairs = list(dict.fromkeys([*self.backend.pairs(), *fixed, *priced_pairs(self.names, self.engine.shape)]))

        def measure() -> Profile:
            with self.show("profile") as progress:
                found = self._crew.by_layers(self.bench, partial(_profile, pairs=pairs), progress)
            return Profile(self.engine.shape, tuple(part.layers[il] for il, part in enumerate(found)), dict(self.facts))

        def has_all(found: Profile) -> bool:
            return all(pair in layer for pair in pairs for layer in found.layers)

        found = self.work.stage("profile", Profile.from_json, measure, has_all)
        return found.only(pairs)

    @property
    def names(self) -> tuple[str, ...]:
        """The types that some layer may have."""
        fixed = [name for pair in self.fixed.values() for name in (pair.k, pair.v)]
        return tuple(dict.fromkeys([*self.backend.names, *fixed]))

    @cached_property
    def candidates(self) -> Candidates:
        """The pairs that each layer may have."""
        made = self._with_fixed(self._pruned())
        return self.work.stage("candidates", Candidates.from_json, lambda: made, made.__eq__)

    def _pruned(self) -> Candidates:
        if self.settings.method == "paper":
            return prune(self.profile.only(self.backend.pairs()), PAPER)
        if self.by_fisher:
            return prune_by_prices(self.prices, self.backend.pairs(), self.engine.shape)
        return prune(self.profile.only(self.backend.pairs()), CAUTIOUS)

    def _with_fixed(self, candidates: Candidates) -> Candidates:
        facts = {**candidates.provenance, **fixed_facts(self.settings.fixed), **left_facts(self.left)}
        return replace(candidates, layers=with_fixed(candidates.layers, self.fixed), provenance=facts)

    @cached_property
    def prices(self) -> Prices:
        """What each type costs each layer."""
        return self._fisher_prices() if self.by_fisher else self._measured_prices()

    def _fisher_prices(self) -> Prices:
        names, settings = self.names, self.settings

        def measure() -> Prices:
            call = partial(_fisher, names=names, seed=settings.seed)
            with self.show("price layers") as progress:
                found = self._crew.by_layers(self.bench, call, progress)
            k, v = (tuple(getattr(part, side)[il] for il, part in enumerate(found)) for side in ("k", "v"))
            return replace(found[0], k=k, v=v, provenance={**self.facts, **found[0].provenance})

        return self.work.stage("fisher", Prices.from_json, measure, lambda found: found.has(names)).only(names)

    def _measured_prices(self) -> Prices:
        at_f16 = [il for il, pair in self.fixed.items() if pair == F16]
        given = (self.profile, self.names, self.settings.n_rungs, at_f16)
        with self.show("price layers") as progress:
            self.ahead(lambda judge: price(judge, *given), progress)
            made = price(self.ledger, *given, progress)  # its KLDs are in the journal
        made = replace(made, provenance={**made.provenance, "noise_floor": self.noise_floor})
        return self.work.stage("prices", Prices.from_json, lambda: made, made.__eq__)

    @cached_property
    def groups(self) -> Groups:
        """Layers that share a pair."""
        made = cluster(self.profile, self.candidates)
        return self.work.stage("groups", Groups.from_json, lambda: made, made.__eq__)


def _profile(bench: Bench, layers: Collection[int], progress: Progress | None, pairs: Sequence[Pair]) -> Profile:
    return profile(bench.engine, bench.tokens, pairs, {}, bench.centers, progress, bench.scales, layers)


def _fisher(
    bench: Bench, layers: Collection[int], progress: Progress | None, names: Sequence[str], seed: int
) -> Prices:
    given = (bench.centers, bench.ends, seed, progress, bench.scales, layers)
    return fisher_prices(bench.engine, bench.tokens, names, {}, *given)
