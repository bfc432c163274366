"""A model is annotated by processes that are killed: run as a program, since it forks.

``killed.py FOLDER N SEED`` kills once before each call that changes a disk, then ``N`` times at random moments, and
prints, as JSON, how often which plan was found afterwards. It ends with an error at the first file that is not whole.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path

import gguf

from kvtuner_gguf.files.atomicfile import is_temporary
from kvtuner_gguf.gguffile.annotate import annotate, strip
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.gguffile.stored_plan import plan_of
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.conftest import N_LAYER, write_model

CALLS = ("pwrite", "copy_file_range", "fsync", "replace", "unlink", "chmod")
PLANS = {
    "small": Plan.uniform(Pair.parse("q4_0"), N_LAYER),
    "large": Plan(tuple(map(Pair.parse, ("q8_0/q4_0", "f16/q5_1", "iq4_nl", "f16"))), ends=Ends(4, 32)),
}
IN_PLACE_SECONDS, WHOLE_SECONDS = 0.01, 0.04  # about two changes

Work = Callable[[Path], object]


IN_PLACE: tuple[Work, ...] = tuple(partial(lambda plan, path: annotate(path, plan, path), p) for p in PLANS.values())
WHOLE: tuple[Work, ...] = (lambda path: strip(path, path), lambda path: annotate(path, PLANS["large"], path))


def killed(work: Callable[[], object], seconds: float | None) -> bool:
    """Whether a process that does ``work`` died; ``seconds`` until it is killed from outside."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the process failed by itself")
    return os.WIFSIGNALED(status)


@contextmanager
def dying_at(number: int) -> Generator[None]:
    """Kill this process before call ``number`` of those that change a disk."""
    calls = 0

    def counted(call: Callable) -> Callable:
        def wrapper(*args: object, **kwargs: object) -> object:
            nonlocal calls
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return call(*args, **kwargs)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    yield


def at_each_call(path: Path, works: Sequence[Work], found: Callable[[], str]) -> list[str]:
    """What was found after a kill before each call of ``works``, one after the other."""
    states: list[str] = []

    def run() -> None:
        with dying_at(len(states)):
            for work in works:
                work(path)

    while killed(run, None):
        states.append(found())
    return states


def at_random(
    path: Path, works: Sequence[Work], found: Callable[[], str], moments: Iterable[float], rng: random.Random
) -> Counter[str]:
    states: Counter[str] = Counter()

    def run(order: Sequence[Work]) -> None:
        for work in cycle(order):
            work(path)

    for moment in moments:
        assert killed(partial(run, rng.sample(works, len(works))), moment)
        states[found()] += 1
    return states


class Check:
    """Holds the file against the tensors that it had."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors = self._by_gguf()

    def __call__(self) -> str:
        """The name of the plan that the file has; raises for what is no whole file with one of them or none."""
        headers = read_model(self._path)
        for other in self._path.parent.iterdir():
            if other != self._path:
                assert is_temporary(other), other
                other.unlink()
        data = self._path.read_bytes()[headers[0].data_start :]
        assert [data[t.offset : t.offset + t.n_bytes] for t in headers[0].tensors] == self._tensors
        plan = plan_of(headers)
        if plan is None:
            assert not any(Keys.is_ours(key) and key not in Keys.ROOM for key in headers[0].fields)
            return "none"
        name = next(name for name, known in PLANS.items() if (known.pairs, known.ends) == (plan.pairs, plan.ends))
        assert headers[0].get(Keys.PLAN_FINGERPRINT) == PLANS[name].fingerprint
        return name

    def also_by_gguf(self) -> str:
        """As a call, and gguf-py reads the same, which takes longer."""
        assert self._by_gguf() == self._tensors
        return self()

    def _by_gguf(self) -> list[bytes]:
        reader = gguf.GGUFReader(self._path)
        assert all(field.contents() is not None for field in reader.fields.values())
        return [tensor.data.tobytes() for tensor in reader.tensors]


def main(folder: Path, count: int, seed: int) -> None:
    path = write_model(folder / "model.gguf")
    annotate(path, PLANS["large"], path)
    check = Check(path)
    rng, n_whole = random.Random(seed), count // 5
    works = {"calls in place": IN_PLACE, "calls whole": WHOLE}
    states: dict[str, list[str] | Counter[str]] = {}
    states |= {name: at_each_call(path, work, check.also_by_gguf) for name, work in works.items()}
    in_place = [rng.uniform(0, IN_PLACE_SECONDS) for _ in range(count - n_whole)]
    states["in place"] = at_random(path, IN_PLACE, check, in_place, rng)
    states["whole"] = at_random(path, WHOLE, check, [rng.uniform(0, WHOLE_SECONDS) for _ in range(n_whole)], rng)
    print(json.dumps(states))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
