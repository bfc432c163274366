"""Stage 4 as in the paper: NSGA-II over one pair per group, for less loss and fewer bits at once.

Source: KVTuner (arXiv 2502.04420), section 5. The paper names MOEA/D, its released code takes NSGA-II, as here. Bits
are true bits here, and the loss is whatever the caller measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.samplers import NSGAIISampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.front import Point, pareto
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.sizes import Sizes
from kvtuner_gguf.progress import Progress

if TYPE_CHECKING:
    from kvtuner_gguf.tuning.cluster import Group, Groups

STUDY = "kvtuner"
DIRECTIONS = ("minimize", "minimize")  # of the loss and of the bits
MAX_SEED = (1 << 32) - 1


@dataclass(frozen=True)
class GeneticSettings:
    """How long to search, and what is wanted of a plan.

    ``trials`` are the paper's, ``population`` is the default of Optuna. ``max_bits`` (true bits per value) and
    ``max_loss`` are soft: plans beyond them are tried, yet lose against any plan within. Raises `KvtunerError`.
    """

    trials: int = 200
    population: int = 50
    seed: int = 0
    max_bits: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        _check_whole("trials", self.trials, 1)
        _check_whole("population", self.population, 2)
        _check_whole("seed", self.seed, 0, MAX_SEED)
        for name, value in (("max_bits", self.max_bits), ("max_loss", self.max_loss)):
            if value is not None and not (_is_number(value) and value >= 0):
                raise KvtunerError(f"{name} is {value!r}: give a finite number from 0, or leave it out")


def _check_whole(name: str, value: object, low: int, high: float = math.inf) -> None:
    if type(value) is not int or not low <= value <= high:
        reach = f"from {low}" if high == math.inf else f"from {low} to {high}"
        raise KvtunerError(f"{name} is {value!r}: give a whole number {reach}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def search(
    groups: Groups,
    loss: Callable[[Sequence[Pair]], float],
    settings: GeneticSettings,
    storage: Path | None = None,
    seeds: Sequence[Sequence[Pair]] = (),
    progress: Progress | None = None,
    sizes: Sizes | None = None,
) -> tuple[Point, ...]:
    """The Pareto front, by rising bytes, of the tried plans within the settings' bounds, or of all where none is.

    ``loss`` of the pairs of all layers is called once for each plan, however often it is tried. ``seeds`` are plans to
    begin with, which count as trials; layers without a KV cache may have any pair in them. ``sizes`` counts bits, by
    default those of the types alone.

    ``storage`` is an Optuna journal for other tools to look at; it is written anew each time. Optuna does not store the
    sampler's random state, so a search that was killed is not continued from there but begun again, with the same
    trials: where the caller keeps what ``loss`` gave, that costs nothing, and the result is that of a search in one go.

    Raises `KvtunerError` where a loss is not finite, a seed is no plan of these groups, or ``storage`` is no writable
    path.
    """
    begin = starts(groups, seeds, settings.trials)
    tried = Tried(groups, loss, settings, sizes or Sizes(groups.model))
    with silent():
        study = optuna.create_study(
            study_name=STUDY,
            storage=None if storage is None else _fresh_storage(storage),
            sampler=NSGAIISampler(population_size=settings.population, seed=settings.seed),
            directions=DIRECTIONS,
        )
        for params in begin:
            study.enqueue_trial(params)
        study.optimize(tried, settings.trials, callbacks=_callbacks(progress, settings.trials))
    return tried.front()


def ladder(groups: Groups, n: int) -> list[tuple[Pair, ...]]:
    """At most ``n`` plans to begin with, from the smallest on: in each, all groups have pairs of about the same bits.

    Plans made by chance all have about the mean bits of the pairs, and a small budget is out of reach for the few
    generations after them.
    """
    levels = sorted({pair.bits_per_value for group in groups.groups for pair in group.pairs})
    plans = list(dict.fromkeys(groups.expand([_up_to(level, group) for group in groups.groups]) for level in levels))
    return [plans[i * len(plans) // min(n, len(plans))] for i in range(min(n, len(plans)))]


def _up_to(level: float, group: Group) -> Pair:
    """The largest pair of ``group`` of at most ``level`` bits per value, or else its smallest."""
    rising = sorted(group.pairs, key=lambda pair: pair.bits_per_value)
    return [rising[0], *(pair for pair in rising if pair.bits_per_value <= level)][-1]


@dataclass
class Tried:
    """The objective of the study, and the plans that it has seen."""

    groups: Groups
    loss: Callable[[Sequence[Pair]], float]
    settings: GeneticSettings
    sizes: Sizes
    points: dict[tuple[Pair, ...], Point] = field(default_factory=dict)

    def __call__(self, trial: optuna.Trial) -> tuple[float, float]:
        """Loss and true bits per value of the plan that ``trial`` suggests."""
        choice = [_suggest(trial, ig, group) for ig, group in enumerate(self.groups.groups)]
        pairs = self.groups.expand(choice)
        bits = self._bits(pairs)  # an impossible plan is found before it is measured
        if pairs not in self.points:
            self.points[pairs] = Point(pairs, float(self.loss(pairs)))
        point = self.points[pairs]
        for name, excess in self._excess(point).items():
            trial.set_constraint(name, excess)
        return point.loss, bits

    def front(self) -> tuple[Point, ...]:
        within = [point for point in self.points.values() if max(self._excess(point).values(), default=0.0) <= 0]
        return pareto(within or self.points.values(), self.sizes)

    def _bits(self, pairs: tuple[Pair, ...]) -> float:
        Plan(pairs).check(self.groups.model)
        return self.sizes.bits(self.sizes.plan(pairs))

    def _excess(self, point: Point) -> Mapping[str, float]:
        """By how much a plan is beyond each bound; within it where that is not above 0."""
        bounds = {
            "bits": (self._bits(point.pairs), self.settings.max_bits),
            "loss": (point.loss, self.settings.max_loss),
        }
        return {name: value - bound for name, (value, bound) in bounds.items() if bound is not None}


def group_name(ig: int) -> str:
    return f"group {ig}"


def _suggest(trial: optuna.Trial, ig: int, group: Group) -> Pair:
    return group.pairs[trial.suggest_int(group_name(ig), 0, len(group.pairs) - 1)]


def starts(groups: Groups, seeds: Sequence[Sequence[Pair]], trials: int) -> list[dict[str, int]]:
    """The seeds as parameters of the study."""
    distinct = list(dict.fromkeys(map(tuple, seeds)))
    if len(distinct) > trials:
        raise KvtunerError(f"{len(distinct)} seeds do not fit into {trials} trials: raise --trials")
    return [{group_name(ig): _index(groups, ig, seed) for ig in range(len(groups.groups))} for seed in distinct]


def _index(groups: Groups, ig: int, seed: Sequence[Pair]) -> int:
    """Which pair of group ``ig`` the seed has."""
    model = groups.model
    if len(seed) != model.n_layer:
        raise KvtunerError(f"a seed has {len(seed)} layers, the model {model.n_layer}: use plans of this model")
    group = groups.groups[ig]
    layers = [il for il in group.layers if model.layers[il].keeps]
    for il in layers:
        if seed[il] not in group.pairs:
            allowed = ", ".join(map(str, group.pairs))
            raise KvtunerError(f"layer {il} of a seed has {seed[il]}, its group {ig} has {allowed}: use one of these")
        if seed[il] != seed[layers[0]]:
            raise KvtunerError(
                f"layer {il} of a seed has {seed[il]}, layer {layers[0]} of the same group {ig} {seed[layers[0]]}: "
                "give the layers of a group one pair"
            )
    return group.pairs.index(seed[layers[0]]) if layers else 0


def _callbacks(
    progress: Progress | None, trials: int
) -> list[Callable[[optuna.Study, optuna.trial.FrozenTrial], None]]:
    return [] if progress is None else [lambda _, trial: progress(trial.number + 1, trials)]


def _fresh_storage(path: Path) -> JournalStorage:
    """An empty journal at ``path``, without what a killed search has left there."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    except OSError as err:
        raise KvtunerError(f"cannot write {path}: {err.strerror}; check the path") from err


@contextmanager
def silent() -> Generator[None]:
    """Optuna's own messages left out; errors are raised in any case."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
