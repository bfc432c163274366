"""The genetic search by several processes at once, on machines of their own: one study of Optuna for all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import NSGAIISampler
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState, create_trial

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.front import Point
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.sizes import Sizes
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.genetic import DIRECTIONS, STUDY, GeneticSettings, Tried, group_name, silent, starts
from kvtuner_gguf.tuning.storages import answering, open_storage, shown
from kvtuner_gguf.tuning.work import difference

if TYPE_CHECKING:
    from kvtuner_gguf.tuning.cluster import Groups

IDENTITY = "kvtuner tuning"
COUNTED = "kvtuner counted trials"
FINISHED = (TrialState.COMPLETE,)


class SharedStudy:
    """The study of the storage ``url``, which is made where it is not there yet.

    Raises `KvtunerError` where the storage cannot be reached or written.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        with silent(), answering(url):
            storage = open_storage(url)
            self.study = optuna.create_study(
                study_name=STUDY, storage=storage, directions=DIRECTIONS, load_if_exists=True
            )

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raise `KvtunerError` where the study is of a tuning that has something in ``identity`` in another way."""
        with answering(self.url):
            before = self.study.user_attrs.get(IDENTITY)
            is_ours = before is not None or not self.finished()
        if not is_ours:
            raise KvtunerError(f"{shown(self.url)} holds a study of something else: choose another --storage")
        if before is None:
            return
        if found := difference({key: before.get(key) for key in identity}, json.loads(json.dumps(identity))):
            # of a layer at the edge of two groups other processors may think otherwise
            like = ", or search with the same profile and groups as the others" if found.startswith("group") else ""
            raise KvtunerError(f"{shown(self.url)} holds a tuning with {found}: choose another --storage{like}")

    def claim(self, identity: Mapping[str, Any], begin: Iterable[Mapping[str, int]]) -> None:
        """Have the study be of ``identity``, and begin it with the plans ``begin``, unless another worker has."""
        self.check(identity)
        if IDENTITY not in self.study.user_attrs:
            self.study.set_user_attr(IDENTITY, dict(identity))
            self.check(identity)  # another worker may have been faster
        for params in begin:  # the one that claimed it may have been killed before it did this
            self.study.enqueue_trial(dict(params), skip_if_exists=True)

    def finished(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=FINISHED)

    def seed(self, seed: int) -> int:
        """One for this worker alone, also where it has been here before."""
        worker = f"{seed} {socket.gethostname()} {os.getpid()} {len(self.study.get_trials(deepcopy=False))}"
        return int.from_bytes(hashlib.sha256(worker.encode()).digest()[:4], "big")

    def counted(self, n_trials: int) -> list[FrozenTrial]:
        """The finished trials that make the front, the same ones for all workers.

        While one worker sees that there are ``n_trials``, others are still at theirs. So each puts down, as a trial
        that failed, what it has seen; the storage numbers trials, and that of the first one counts.
        """
        numbers = [trial.number for trial in self.finished()]
        seen = {COUNTED: {"trials": n_trials, "numbers": numbers}}
        self.study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=seen))
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        notes = [trial.user_attrs[COUNTED] for trial in failed if COUNTED in trial.user_attrs]
        first = set(next(note["numbers"] for note in notes if note["trials"] == n_trials))
        return [trial for trial in self.finished() if trial.number in first]


def search_together(
    shared: SharedStudy,
    identity: Mapping[str, Any],
    groups: Groups,
    loss: Callable[[Sequence[Pair]], float],
    settings: GeneticSettings,
    seeds: Sequence[Sequence[Pair]] = (),
    progress: Progress | None = None,
    sizes: Sizes | None = None,
) -> tuple[Point, ...]:
    """`genetic.search` as one of the workers at ``shared``, until that has as many finished trials as are asked for.

    All workers give the same front, that of the trials of all. A plan that one of them has measured is not measured
    again. What a worker that is killed was measuring is left out, or run again where the storage sees its end.

    Raises `KvtunerError` as `genetic.search`, and where the study is of another tuning than ``identity`` of ``groups``.
    """
    begin = starts(groups, seeds, settings.trials)

    def known(pairs: Sequence[Pair]) -> float:
        point = points_of(shared.finished(), groups).get(tuple(pairs))
        return loss(pairs) if point is None else point.loss

    tried = Tried(groups, known, settings, sizes or Sizes(groups.model))
    with silent(), answering(shared.url):
        shared.claim({**identity, "group": _in_words(groups)}, begin)
        shared.study.sampler = NSGAIISampler(population_size=settings.population, seed=shared.seed(settings.seed))
        while len(shared.finished()) < settings.trials:
            stop = MaxTrialsCallback(settings.trials, states=FINISHED)
            with _told_by_another():
                shared.study.optimize(tried, callbacks=[*_callbacks(shared, progress, settings.trials), stop])
        tried.points = points_of(shared.counted(settings.trials), groups)
    return tried.front()


@contextmanager
def _told_by_another() -> Generator[None]:
    """SQLite, which locks no rows, can hand out a waiting trial twice: the one that is later goes on with others."""
    try:
        yield
    except ValueError as err:
        if not re.match(r"Cannot tell a \w+ trial", str(err)):
            raise


def points_of(trials: Iterable[FrozenTrial], groups: Groups) -> dict[tuple[Pair, ...], Point]:
    """The plans of finished ``trials``; of one that was measured twice the first counts."""
    points: dict[tuple[Pair, ...], Point] = {}
    for trial in trials:
        choice = [group.pairs[trial.params[group_name(ig)]] for ig, group in enumerate(groups.groups)]
        pairs = groups.expand(choice)
        if trial.values is not None:
            points.setdefault(pairs, Point(pairs, trial.values[0]))
    return points


def _in_words(groups: Groups) -> dict[str, str]:
    """The layers and pairs of each group, by its number."""
    named = [(",".join(map(str, group.layers)), " ".join(map(str, group.pairs))) for group in groups.groups]
    return {str(ig): f"layers {layers} of {pairs}" for ig, (layers, pairs) in enumerate(named)}


def _callbacks(
    shared: SharedStudy, progress: Progress | None, n_trials: int
) -> list[Callable[[optuna.Study, FrozenTrial], None]]:
    return [] if progress is None else [lambda study, trial: progress(min(len(shared.finished()), n_trials), n_trials)]
