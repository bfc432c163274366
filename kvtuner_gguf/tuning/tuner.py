"""The whole offline stage: calibration -> profile -> candidates -> prices or groups -> front -> plan, verified.

What a stage has finished is kept in the folder of the tuning (`kvtuner_gguf.tuning.work`) and read back from there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.by_engine import evaluate
from kvtuner_gguf.evaluation.rows import Row
from kvtuner_gguf.plan.backends import of_types
from kvtuner_gguf.plan.centers import DEFAULT_SPAN, Centers
from kvtuner_gguf.plan.front import Front, Point
from kvtuner_gguf.plan.pairs import UNQUANTIZED, Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.calibration import Texts, calibrate_texts
from kvtuner_gguf.tuning.center import measure_centers
from kvtuner_gguf.tuning.cluster import Groups, cluster
from kvtuner_gguf.tuning.fixed import check_fixed, fixed_facts, with_fixed
from kvtuner_gguf.tuning.genetic import GeneticSettings, ladder
from kvtuner_gguf.tuning.genetic import search as genetic_search
from kvtuner_gguf.tuning.judges import Ledger, TaskJudge
from kvtuner_gguf.tuning.prices import Prices, one_sided, price
from kvtuner_gguf.tuning.profile import Profile, profile
from kvtuner_gguf.tuning.prune import CAUTIOUS, PAPER, Candidates, prune
from kvtuner_gguf.tuning.search import Search, front_of, sweep
from kvtuner_gguf.tuning.settings import Settings, facts_of
from kvtuner_gguf.tuning.work import Work

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Opens a progress display with a title; gives a callback of steps done and steps in all."""


@dataclass(frozen=True)
class Tuned:
    """The plan with what led to it; ``prices`` is None with the paper's method.

    ``loss_tuning``: the objective on the tuning text, for KLD the mean in nats per token against the exact model.
    ``row``: the plan on the held-out text, ``held_out``, against the f16 cache, as `eval` has it.
    """

    plan: Plan
    front: Front
    profile: Profile
    prices: Prices | None
    loss_tuning: float
    row: Row
    held_out: list[np.ndarray]


class Tuner:
    """The stages of the model of ``engine`` on ``text``, each of which does what it needs of those before.

    The same settings give the same plan, after an interruption, too. Raises `KvtunerError` where the model cannot be
    loaded, or ``folder`` holds another tuning.
    """

    def __init__(
        self,
        engine: Engine,
        text: Texts,
        settings: Settings,
        folder: Path | None = None,
        fresh: bool = False,
        stage: Stage | None = None,
    ) -> None:
        shape = engine.shape
        check_fixed(settings.fixed, shape)
        self._engine, self._shape, self._settings = engine, shape, settings
        self._stage = stage or (lambda title: nullcontext(lambda done, total: None))
        self._backend = settings.backend.fitting(shape)
        self._sizes = settings.goal.sizes(shape)
        self._facts = facts_of(engine, text, settings)
        centering = {"center": settings.center, "center_span": DEFAULT_SPAN if settings.center else None}
        self._work = Work(folder, {**self._facts, **centering, "model": shape.to_json()}, fresh)
        torch.manual_seed(settings.seed)
        with self._stage("load the reference model"):
            tokens = (settings.n_tokens, settings.n_ctx, settings.seed)
            self._texts = calibrate_texts(text, engine.tokenize, *tokens)
        self._centers = self._center() if settings.center else None
        self._ledger = Ledger(lambda: engine.judge(self._texts.tuning, self._centers), self._work.journal)

    def run(self, by_tasks: TaskJudge | None = None) -> Tuned:
        """The plan by the method of the settings; ``by_tasks`` is needed where failed tasks are the objective.

        Raises `KvtunerError` where no plan fits.
        """
        return self._paper(by_tasks) if self._settings.method == "paper" else self._exact()

    def take(self, profile: Profile, candidates: Candidates, groups: Groups | None = None) -> None:
        """Go on from stages that were run before, for this model and these texts; the types are those of the profile.

        Raises `KvtunerError` where they are of another model or text.
        """
        for name, given in (("profile", profile), ("candidates", candidates), ("groups", groups)):
            if given is not None:
                self._check_given(name, given)
        types = {name for pair in profile.layers[0] for name in (pair.k, pair.v)} - {UNQUANTIZED}
        self._check_fixed(types, groups)
        self._backend = of_types(sorted(types))
        self.profile, self.candidates = profile, self._with_fixed(candidates)
        if groups is not None:
            self.groups = groups

    def _check_fixed(self, types: Collection[str], groups: Groups | None) -> None:
        """Raise `KvtunerError` where stages that were run before leave no way to fix the layers."""
        if self._settings.fixed and groups is not None:
            raise KvtunerError("--fix and groups both say what layers have: give the candidates, or change the groups")
        for il, pair in self._settings.fixed.items():
            missing = sorted({pair.k, pair.v}.difference(types))
            if missing:
                raise KvtunerError(
                    f"layer {il} is fixed to {pair}, and the profile has no {missing[0]}: profile with --candidates "
                    f"{','.join([*sorted(types), *missing])}"
                )

    def _check_given(self, name: str, given: Profile | Candidates | Groups) -> None:
        if given.model != self._shape:
            raise KvtunerError(f"{name}: it is of another model: run that stage again for {self._engine.model}")
        for fact in ("text_sha256", "text_tokens", "n_ctx", "seed"):
            if given.provenance.get(fact) != self._facts[fact]:
                raise KvtunerError(
                    f"{name}: {fact} is {given.provenance.get(fact)!r}, not {self._facts[fact]!r}: give the text, "
                    "--tokens, --ctx and --seed of the profile"
                )

    def _center(self) -> Centers | None:
        """The centers of the keys, from the tuning text."""
        plan = self._work.stage("centers", Plan.from_json, self._measure_centers)
        self._facts["keys"] = plan.provenance["keys"]
        return plan.centers

    def _measure_centers(self) -> Plan:
        with self._stage("center keys") as progress:
            centers, spread = measure_centers(self._engine, self._texts.tuning, progress=progress)
        pairs = (Pair("f16", "f16"),) * self._shape.n_layer
        return Plan(pairs, self._shape, {**self._facts, "keys": spread.to_json()}, centers)

    @cached_property
    def profile(self) -> Profile:
        """The errors of every candidate pair in every layer."""
        fixed = self._settings.fixed.values()
        pairs = list(dict.fromkeys([*self._backend.pairs(), *fixed, *one_sided(self._names)]))

        def measure() -> Profile:
            with self._stage("profile") as progress:
                return profile(self._engine, self._texts.tuning, pairs, self._facts, self._centers, progress)

        def has_all(found: Profile) -> bool:
            return all(pair in layer for pair in pairs for layer in found.layers)

        found = self._work.stage("profile", Profile.from_json, measure, has_all)
        return found.only(pairs)

    @property
    def _names(self) -> tuple[str, ...]:
        """The types that some layer may have."""
        fixed = [name for pair in self._settings.fixed.values() for name in (pair.k, pair.v)]
        return tuple(dict.fromkeys([*self._backend.names, *fixed]))

    @cached_property
    def candidates(self) -> Candidates:
        """The pairs that each layer may have."""
        rule = PAPER if self._settings.method == "paper" else CAUTIOUS
        made = self._with_fixed(prune(self.profile.only(self._backend.pairs()), rule))
        return self._work.stage("candidates", Candidates.from_json, lambda: made, made.__eq__)

    def _with_fixed(self, candidates: Candidates) -> Candidates:
        fixed = self._settings.fixed
        facts = {**candidates.provenance, **fixed_facts(fixed)}
        return replace(candidates, layers=with_fixed(candidates.layers, fixed), provenance=facts)

    @cached_property
    def prices(self) -> Prices:
        """What each type costs each layer."""
        names, profiled = self._names, self.profile

        def measure() -> Prices:
            with self._stage("price layers") as progress:
                return price(self._ledger, profiled, names, self._settings.n_rungs, progress)

        made = measure()  # its KLDs are in the journal
        return self._work.stage("prices", Prices.from_json, lambda: made, made.__eq__)

    def _exact(self) -> Tuned:
        """The plan by prices, an exact solver and a refinement of the whole."""
        search = Search(self._ledger, self.prices, self.candidates.layers, self._sizes, self._settings.trials)
        goal = self._settings.goal
        with self._stage(f"search {goal}") as progress:
            budget = goal.budget(self._sizes)
            point = search.below(goal.ceiling, progress) if budget is None else search.within(budget, progress)
        with self._stage("find the front") as progress:
            layers = self.candidates.layers
            points = sweep(self._ledger, self.prices, layers, self._sizes, self._settings.n_points, progress)
        front = front_of([*points, point], self._sizes, self._facts)
        if self._settings.evolve:
            front = self._evolved(front)
            point = self._chosen(front)
        return self._verified(point, front, self.prices)

    def _evolved(self, front: Front) -> Front:
        """``front`` with what a genetic search, which begins with it, finds besides."""
        groups = Groups.singletons(self.candidates)
        with self._stage("evolve the front") as progress:
            points = self._genetic(groups, self._settings.evolve, [point.pairs for point in front.points], progress)
        priced = [replace(point, priced=self.prices.plan(point.pairs)) for point in points]
        return front_of([*front.points, *priced], self._sizes, self._facts)

    def _genetic(
        self,
        groups: Groups,
        trials: int,
        seeds: Sequence[Sequence[Pair]],
        progress: Progress,
        loss: Callable[[Sequence[Pair]], float] | None = None,
    ) -> tuple[Point, ...]:
        budget = self._settings.goal.budget(self._sizes)
        bits = None if budget is None else self._sizes.bits(budget)
        settings = GeneticSettings(
            trials, seed=self._settings.seed, max_bits=bits, max_loss=self._settings.goal.max_kld
        )
        storage = self._work.file("optuna.log")
        groups = replace(groups, model=self._sizes.shape)
        return genetic_search(groups, loss or self._ledger.kld, settings, storage, seeds, progress)

    def _chosen(self, front: Front) -> Point:
        goal = self._settings.goal
        budget = goal.budget(self._sizes)
        point = front.smallest_below(goal.ceiling) if budget is None else front.best_within(budget)
        if point is None:
            raise KvtunerError(f"none of the plans tried meets {goal}: raise --trials or the goal")
        return point

    @cached_property
    def groups(self) -> Groups:
        """Layers that share a pair."""
        made = cluster(self.profile, self.candidates)
        return self._work.stage("groups", Groups.from_json, lambda: made, made.__eq__)

    def _paper(self, by_tasks: TaskJudge | None) -> Tuned:
        """The plan by groups of layers and a genetic search, as in the paper."""
        loss = self._loss(by_tasks)
        with self._stage(f"search {self._settings.goal}") as progress:
            trials = self._settings.trials
            points = self._genetic(self.groups, trials, ladder(self.groups, max(1, trials // 10)), progress, loss)
        front = Front(self._sizes.shape, self._settings.objective, points, self._facts)
        return self._verified(self._chosen(front), front, None)

    def _loss(self, by_tasks: TaskJudge | None) -> Callable[[Sequence[Pair]], float]:
        if self._settings.objective != "failed":
            return self._ledger.perplexity if self._settings.objective == "perplexity" else self._ledger.kld
        if by_tasks is None:
            raise KvtunerError("failed tasks need tasks: give --tasks")

        def loss(pairs: Sequence[Pair]) -> float:
            plan = self._plan(pairs)
            key = " ".join(["failed", by_tasks.name, *map(str, pairs)])
            return self._work.journal.remember(key, lambda: by_tasks.failed_share(plan))

        return loss

    def _plan(self, pairs: Sequence[Pair]) -> Plan:
        """``pairs`` with the centers of what they quantize."""
        centers = self._centers.of_quantized(pairs) if self._centers else None
        return Plan(tuple(pairs), self._sizes.shape, centers=centers)

    def _verified(self, point: Point, front: Front, prices: Prices | None) -> Tuned:
        """``point`` as a plan, judged on the held-out text."""
        plan = self._plan(point.pairs)
        held_out = list(self._texts.held_out.numpy().astype(np.int32))
        with self._stage("verify on held-out text") as progress:
            row = self._held_out(plan, held_out, progress)
        provenance = {
            **self._facts,
            "method": self._settings.method,
            "objective": self._settings.objective,
            "goal": str(self._settings.goal),
            "candidates": list(self._backend.names),
            **fixed_facts(self._settings.fixed),
            "loss_tuning": point.loss,
            "kld_priced": point.priced,
            **{name: getattr(row, name) for name in ("kld_mean", "kld_median", "same_top", "ppl_ratio")},
        }
        front = self._work.stage("front", Front.from_json, lambda: front, front.__eq__)
        return Tuned(replace(plan, provenance=provenance), front, self.profile, prices, point.loss, row, held_out)

    def _held_out(self, plan: Plan, chunks: Sequence[np.ndarray], progress: Progress) -> Row:
        def measure() -> dict[str, Any]:
            return asdict(evaluate(self._engine, {f"plan, {self._engine.name}": plan}, chunks, progress)[1])

        return Row(**self._work.journal.remember(" ".join(["held-out", *map(str, plan.pairs)]), measure))
