"""The whole offline stage: calibration -> prices, or profile and groups -> front -> plan, verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.by_engine import evaluate
from kvtuner_gguf.evaluation.rows import Row, are_rows, rows_from_json
from kvtuner_gguf.plan.front import Front, Point
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan, of_caches
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.cluster import Groups
from kvtuner_gguf.tuning.crew import Crew
from kvtuner_gguf.tuning.fixed import fixed_facts
from kvtuner_gguf.tuning.genetic import GeneticSettings, ladder
from kvtuner_gguf.tuning.genetic import search as genetic_search
from kvtuner_gguf.tuning.judges import TaskJudge
from kvtuner_gguf.tuning.prices import Prices
from kvtuner_gguf.tuning.profile import Profile
from kvtuner_gguf.tuning.prune import Candidates
from kvtuner_gguf.tuning.rivals import rivals
from kvtuner_gguf.tuning.search import Search, front_of, sweep
from kvtuner_gguf.tuning.settings import Settings, facts_of, identity_of
from kvtuner_gguf.tuning.stages import Stage, Stages
from kvtuner_gguf.tuning.texts import Texts
from kvtuner_gguf.tuning.together import SharedStudy, search_together
from kvtuner_gguf.tuning.uniform import uniform_points
from kvtuner_gguf.tuning.windows import left_facts


@dataclass(frozen=True)
class Tuned:
    """The plan with what led to it; ``prices`` is None with the paper's method.

    ``loss_tuning``: the objective on the tuning text, for KLD the mean in nats per token against the exact model, with
    its standard error ``loss_tuning_se`` and the ``noise_floor``, as `Stages.noise_floor`; None for others.
    ``front_se``: the standard errors of the losses of the front's points, None for those that were not measured here.
    ``row``: the plan on the held-out text, ``held_out``, against the f16 cache, as `eval` has it; ``rivals``: the
    uniform plans of about its size, as `kvtuner_gguf.tuning.rivals` chooses them.
    """

    plan: Plan
    front: Front
    prices: Prices | None
    loss_tuning: float
    loss_tuning_se: float | None
    noise_floor: float | None
    row: Row
    held_out: list[np.ndarray]
    rivals: tuple[Row, ...] = ()
    front_se: tuple[float | None, ...] = ()


class Tuner:
    """The plan of the model of ``engine`` on ``text``; its stages are `Stages`.

    The same settings give the same plan, after an interruption, too. Raises `KvtunerError` where the model cannot be
    loaded, or ``folder`` holds another tuning. What a ``crew`` can measure side by side it does.
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
        self._settings = settings
        self._tuning = {**identity_of(engine, facts_of(engine, text, settings), settings), "goal": str(settings.goal)}
        if fresh and settings.storage is not None:
            raise KvtunerError("--fresh empties a folder, not the study of --storage: name another study instead")
        self._shared = None if settings.storage is None else SharedStudy(settings.storage)
        if self._shared is not None:  # what stands against it is told before anything is measured
            self._shared.check(self._tuning)
        self._stages = Stages(engine, text, settings, folder, fresh, stage, crew)
        centers = self._stages.centers
        self._sizes = settings.goal.sizes(engine.shape, settings.ends, centers.span if centers else None)

    def run(self, by_tasks: TaskJudge | None = None) -> Tuned:
        """The plan by the method of the settings; ``by_tasks`` is needed where failed tasks are the objective.

        Raises `KvtunerError` where no plan fits.
        """
        if self._settings.objective == "kld":
            _ = self._stages.noise_floor  # where nothing can be measured it fails early
        return self._paper(by_tasks) if self._settings.method == "paper" else self._exact()

    def take(self, profile: Profile, candidates: Candidates, groups: Groups | None = None) -> None:
        """As `Stages.take`."""
        self._stages.take(profile, candidates, groups)

    @property
    def profile(self) -> Profile:
        """As `Stages.profile`."""
        return self._stages.profile

    def _exact(self) -> Tuned:
        """The plan by prices, an exact solver and a refinement of the whole."""
        stages, goal = self._stages, self._settings.goal
        ledger, prices, layers = stages.ledger, stages.prices, stages.candidates.layers
        search = Search(ledger, prices, layers, self._sizes, stages.n_trials, stages.noise)
        with stages.show(f"search {goal}") as progress:
            budget = goal.budget(self._sizes)
            point = search.below(goal.ceiling, progress) if budget is None else search.within(budget, progress)
        with stages.show("find the front") as progress:
            given = (prices, layers, self._sizes, self._settings.n_points)
            stages.ahead(lambda judge: sweep(judge, *given), progress)
            points = sweep(ledger, *given, progress)
        front = front_of([*points, point], self._sizes, stages.facts)
        if self._settings.evolve:
            front = self._evolved(front)
            point = self._preferred(self._chosen(front), point)
        return self._verified(point, front, prices)

    def _evolved(self, front: Front) -> Front:
        """``front`` with what a genetic search, which begins with it, finds besides."""
        stages = self._stages
        groups = Groups.singletons(stages.candidates)
        with stages.show("evolve the front") as progress:
            seeds = [point.pairs for point in front.points]
            points = self._genetic(groups, self._settings.evolve, seeds, progress, stages.ledger.kld)
        priced = [replace(point, priced=stages.prices.plan(point.pairs)) for point in points]
        return front_of([*front.points, *priced], self._sizes, stages.facts)

    def _genetic(
        self,
        groups: Groups,
        trials: int,
        seeds: Sequence[Sequence[Pair]],
        progress: Progress,
        loss: Callable[[Sequence[Pair]], float],
    ) -> tuple[Point, ...]:
        budget, stages = self._settings.goal.budget(self._sizes), self._stages
        bits = None if budget is None else self._sizes.bits(budget)
        settings = GeneticSettings(
            trials, seed=self._settings.seed, max_bits=bits, max_loss=self._settings.goal.max_kld
        )
        storage = stages.work.file("optuna.log")
        groups = replace(groups, model=self._sizes.shape)
        if self._shared is not None:
            return search_together(self._shared, self._tuning, groups, loss, settings, seeds, progress, self._sizes)
        return genetic_search(groups, loss, settings, storage, seeds, progress, self._sizes)

    def _chosen(self, front: Front) -> Point:
        goal = self._settings.goal
        budget = goal.budget(self._sizes)
        point = front.smallest_below(goal.ceiling) if budget is None else front.best_within(budget, self._sizes)
        if point is None:
            raise KvtunerError(f"none of the plans tried meets {goal}: raise --trials or the goal")
        return point

    def _preferred(self, found: Point, before: Point) -> Point:
        """``found``, unless it is for a budget and wins no more than noise over the one ``before``."""
        is_chance = before.loss - found.loss < self._stages.noise(found.pairs, before.pairs)
        return before if is_chance and self._settings.goal.max_kld is None else found

    def _paper(self, by_tasks: TaskJudge | None) -> Tuned:
        """The plan by groups of layers and a genetic search, as in the paper."""
        loss, stages = self._loss(by_tasks), self._stages
        self._tuning["objective"] = self._settings.objective if by_tasks is None else f"failed {by_tasks.name}"
        with stages.show(f"search {self._settings.goal}") as progress:
            trials, groups = stages.n_trials, stages.groups
            points = self._genetic(groups, trials, ladder(groups, max(1, trials // 10)), progress, loss)
        front = front_of(points, self._sizes, stages.facts, self._settings.objective)
        return self._verified(self._chosen(front), front, None)

    def _loss(self, by_tasks: TaskJudge | None) -> Callable[[Sequence[Pair]], float]:
        ledger = self._stages.ledger
        if self._settings.objective != "failed":
            return ledger.perplexity if self._settings.objective == "perplexity" else ledger.kld
        if by_tasks is None:
            raise KvtunerError("failed tasks need tasks: give --tasks")

        def loss(pairs: Sequence[Pair]) -> float:
            plan = self._plan(pairs)
            key = " ".join(["failed", by_tasks.name, *map(str, pairs)])
            return self._stages.work.journal.remember(key, lambda: by_tasks.failed_share(plan))

        return loss

    def _plan(self, pairs: Sequence[Pair]) -> Plan:
        """``pairs`` with the ends, and the centers and scales of what they quantize."""
        centers, scales = self._stages.centers, self._stages.scales
        pairs = of_caches(pairs, self._sizes.shape)
        return Plan(
            pairs,
            self._sizes.shape,
            centers=centers and centers.of_quantized(pairs),
            ends=self._settings.ends,
            scales=scales and scales.of_quantized(pairs),
        )

    def _verified(self, point: Point, front: Front, prices: Prices | None) -> Tuned:
        """``point`` as a plan, judged on the held-out text."""
        stages, plan = self._stages, self._plan(point.pairs)
        held_out = list(stages.texts.held_out.numpy().astype(np.int32))
        with stages.show("verify on held-out text") as progress:
            row, *others = self._held_out(plan, prices, held_out, progress)
        front = self._beside_uniform(front)
        by_kld = self._settings.objective == "kld"
        error, floor = (stages.ledger.standard_error(point.pairs), stages.noise_floor) if by_kld else (None, None)
        provenance = {
            **stages.facts,
            "method": self._settings.method,
            "objective": self._settings.objective,
            "goal": str(self._settings.goal),
            "for_ctx": self._sizes.n_ctx,
            "bits_with_ends": plan.bits_with_ends(self._sizes.shape, self._sizes.n_ctx),
            "candidates": list(stages.backend.names),
            **fixed_facts(self._settings.fixed),
            **left_facts(stages.left),
            "prices": None if prices is None else prices.provenance.get("prices"),
            "loss_tuning": point.loss,
            "loss_tuning_se": error,
            "noise_floor": floor,
            "kld_priced": point.priced,
            **{name: getattr(row, name) for name in ("kld_mean", "kld_se", "kld_median", "same_top", "ppl_ratio")},
        }
        front = stages.work.stage("front", Front.from_json, lambda: front, front.__eq__)
        plan = replace(plan, provenance=provenance)
        errors = tuple(self._error(point) if by_kld else None for point in front.points)
        return Tuned(plan, front, prices, point.loss, error, floor, row, held_out, tuple(others), errors)

    def _error(self, point: Point) -> float | None:
        """The standard error of its loss; None where another worker has measured it."""
        ledger = self._stages.ledger
        return ledger.standard_error(point.pairs) if ledger.has(point.pairs) else None

    def _beside_uniform(self, front: Front) -> Front:
        """``front`` with what uniform pairs lose, and its method; tasks take too long to judge more plans by them."""
        stages, facts = self._stages, {**front.provenance, "method": self._settings.method}
        if self._settings.objective == "failed":
            return replace(front, provenance=facts)
        losses = {"kld": stages.ledger.kld, "perplexity": stages.ledger.perplexity}
        given = (stages.backend.names, self._sizes.shape)
        with stages.show("judge uniform pairs") as progress:
            if self._settings.objective == "kld":
                stages.ahead(lambda judge: uniform_points(judge.kld, *given), progress)
            points = uniform_points(losses[self._settings.objective], *given)
        return replace(front, provenance=facts, uniform=points)

    def _held_out(
        self, plan: Plan, prices: Prices | None, chunks: Sequence[np.ndarray], progress: Progress
    ) -> list[Row]:
        """The row of ``plan``, and those of what it has to win over."""
        stages, engine = self._stages, self._stages.engine
        beside = rivals(plan, engine.shape, self._sizes.n_ctx, stages.backend.pairs(), self._plan, prices)
        caches = {f"plan, {engine.name}": plan, **beside}

        def measure() -> dict[str, Any]:
            _, *rows = evaluate(engine, caches, chunks, progress)
            return {"rows": [asdict(row) for row in rows]}

        key = " ".join(["held-out", *map(str, plan.pairs), *beside])
        return rows_from_json(stages.work.journal.remember(key, measure, _has_rows)["rows"])


def _has_rows(kept: object) -> bool:
    return isinstance(kept, Mapping) and are_rows(kept.get("rows"))
