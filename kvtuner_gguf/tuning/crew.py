"""Processes beside this one, one on each further device: layers and plans that do not wait for each other are shared.

Each of them opens the model itself, and measures what this process would, so that the results are those of one process.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import connection, get_context, parent_process
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from kvtuner_gguf.childprocess import how_it_ended
from kvtuner_gguf.engine.base import Engine, TokenJudge
from kvtuner_gguf.engine.devices import VISIBLE
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.journal import Journal
from kvtuner_gguf.tuning.judges import Ledger

if TYPE_CHECKING:
    from kvtuner_gguf.engine.opening import Helper

T = TypeVar("T")
# plans that each process has before it: it need not wait for this one, which measures, too
AHEAD = 2
# seconds for a process to end by itself
PATIENCE = 10


@dataclass(frozen=True)
class Bench:
    """What measures: the model of ``engine`` on ``tokens`` [chunks, context], with caches that have the rest."""

    engine: Engine
    tokens: Tensor
    centers: Centers | None = None
    ends: Ends | None = None
    scales: Scales | None = None

    def judge(self) -> TokenJudge:
        return self.engine.judge(self.tokens, self.centers, self.ends, self.scales)

    def ledger(self, journal: Journal) -> Ledger:
        return Ledger(self.judge, journal, n_chunks=len(self.tokens))

    def measured(self, pairs: Sequence[Pair]) -> Mapping[str, Any]:
        """What a ledger keeps of ``pairs``."""
        return self._own.measured(pairs)

    @cached_property
    def _own(self) -> Ledger:
        """Of another process, which keeps nothing in a file."""
        return self.ledger(Journal())


class Asked:
    """A `kvtuner_gguf.tuning.judges.ErrorJudge` that measures nothing, and knows what it was asked for."""

    def __init__(self) -> None:
        self.plans: list[tuple[Pair, ...]] = []

    def kld(self, pairs: Sequence[Pair]) -> float:
        self.plans.append(tuple(pairs))
        return 1.0

    def standard_error(self, pairs: Sequence[Pair]) -> float:
        self.plans.append(tuple(pairs))
        return 0.0

    def settle(self, pairs: Sequence[Pair]) -> None:
        pass


class Crew:
    """This process and those of ``helpers``, which start when there is something to share, and end with the block."""

    def __init__(self, helpers: Sequence[Helper] = ()) -> None:
        self._helpers, self._members = helpers, []

    def __bool__(self) -> bool:
        return bool(self._helpers)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for member in self._members:
            member.end(PATIENCE if kind is None else 0)
        self._members = []

    def by_layers(self, bench: Bench, call: Callable[..., T], progress: Progress) -> list[T]:
        """For each layer what ``call(bench, layers, progress)`` gives where that layer is one of ``layers``.

        Raises `KvtunerError` where one of the processes does, or ends.
        """
        members, n_layer = self._started(bench), bench.engine.shape.n_layer
        shares = [range(i, n_layer, len(members) + 1) for i in range(len(members) + 1)]
        for member, share in zip(members, shares[1:], strict=True):
            member.send(partial(call, layers=share, progress=None))
        found = [call(bench, shares[0], progress), *(member.receive() for member in members)]
        return [found[il % len(shares)] for il in range(n_layer)]

    def klds(self, bench: Bench, plans: Iterable[Sequence[Pair]], ledger: Ledger, progress: Progress) -> None:
        """Have the KLDs of ``plans`` and their standard errors in ``ledger``, each as soon as it is known.

        Raises `KvtunerError` as `by_layers`.
        """
        plans = [pairs for pairs in dict.fromkeys(map(tuple, plans)) if not ledger.has(pairs)]
        todo = deque(plans)
        members = self._started(bench) if todo else []
        while todo or any(member.n_asked for member in members):
            for member in members:
                while todo and member.n_asked < AHEAD:
                    member.send(partial(_measured, todo.popleft()))
            if todo:
                ledger.measured(todo.popleft())
            for member in _answering([member for member in members if member.n_asked], wait=not todo):
                ledger.keep(*member.receive())
            progress(len(plans) - len(todo) - sum(member.n_asked for member in members), len(plans))

    def _started(self, bench: Bench) -> list[_Member]:
        if not self._members:
            self._members = [_Member(helper) for helper in self._helpers]
            for member in self._members:
                member.begin(bench)
        return self._members


class _Member:
    """One of the other processes, and the questions to it that are not answered yet."""

    def __init__(self, helper: Helper) -> None:
        context = get_context("spawn")
        self.name, self.n_asked = helper.device.name, 0
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, helper), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, bench: Bench) -> None:
        self._put((bench.engine.versions, bench.tokens, bench.centers, bench.ends, bench.scales))

    def send(self, call: Callable[..., Any]) -> None:
        self._put(call)
        self.n_asked += 1

    def receive(self) -> Any:
        try:
            is_good, found = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._ended() from None
        self.n_asked -= 1
        if not is_good:
            raise KvtunerError(f"the process on {self.name}: {found}")
        return found

    def end(self, patience: float) -> None:
        """Let it end by itself once it has nothing more to read, or after ``patience`` seconds at the latest."""
        self.pipe.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()

    def _put(self, what: object) -> None:
        try:
            self.pipe.send_bytes(pickle.dumps(what))  # tensors, too, go by value
        except OSError:
            raise self._ended() from None

    def _ended(self) -> KvtunerError:
        self.process.join()
        how = how_it_ended(self.process.exitcode or 0)
        return KvtunerError(f"the process on {self.name} {how}; the same command then goes on from what is measured")


def _answering(members: Sequence[_Member], wait: bool) -> list[_Member]:
    """Those that have an answer, or have ended; at least one of them if ``wait``."""
    ready = connection.wait([member.pipe for member in members], None if wait else 0) if members else []
    return [member for member in members if member.pipe in ready]


def _measured(pairs: Sequence[Pair], bench: Bench) -> tuple[Sequence[Pair], Mapping[str, Any]]:
    return pairs, bench.measured(pairs)


def _serve(pipe: connection.Connection, helper: Helper) -> None:
    """What another process does: answer until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that is for the process that has started it, with which it ends
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if helper.device.visible is not None:
        os.environ[VISIBLE] = helper.device.visible
    try:
        versions, *given = pickle.loads(pipe.recv_bytes())
        bench = Bench(helper.open(), *given)
        _check_alike(bench.engine, versions)
        while True:
            call = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps((True, call(bench=bench))))
    except KvtunerError as err:
        pipe.send_bytes(pickle.dumps((False, str(err))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def _end_with_parent() -> None:
    """Whatever is being measured: nobody waits for it, and it takes the memory of a device."""
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _check_alike(engine: Engine, versions: dict[str, str]) -> None:
    """Raise `KvtunerError` where ``engine`` measures in another way than one of these ``versions``."""
    for name, version in versions.items():
        if engine.versions.get(name) != version:
            raise KvtunerError(
                f"{name} would be {engine.versions.get(name)}, not {version} as on the first device: free some memory, "
                "or name fewer devices"
            )
