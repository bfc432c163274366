"""What a command that works long says on stderr: its stages with their times, and how far they are.

On a terminal a bar shows how far a stage is. Elsewhere each stage is a line with its time when it is over; nowhere is a
command silent for long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from threading import Event, Thread

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from kvtuner_gguf.progress import Progress
from kvtuner_gguf.report.numbers import duration
from kvtuner_gguf.report.terminal import console, has_width, is_animated, wrapped

# seconds without a word after which a command says how far it is, and how often it looks whether it is time to
SILENCE, TICK = 8.0, 0.5
# columns of a bar, and of what stands beside its title
BAR, BESIDE = 40, 32
# stages that the last line names, and the least share of the time that they have
LONGEST, SHARE = 3, 0.1
MEGABYTE = 10**6


class Level(IntEnum):
    """How much is said: results alone, stages, too, or also when they begin and what llama.cpp logs."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


@dataclass
class _Stage:
    title: str
    amount: Callable[[int, int], str]
    start: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0

    @property
    def state(self) -> str:
        return self.amount(self.done, self.total) if self.total else ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


class Talk:
    """Of one command, from the call on; a `Level` of quiet says nothing."""

    def __init__(self, level: Level) -> None:
        self._level, self._console = level, console(stderr=True)
        self._start = self._last_word = time.monotonic()
        self._open: list[_Stage] = []
        self._seconds: dict[str, float] = {}
        self._bars: Bars | None = None
        self._over = Event()
        if level > Level.QUIET:
            Thread(target=self._break_silence, daemon=True).start()

    @contextmanager
    def stage(self, title: str, amount: Callable[[int, int], str]) -> Generator[Progress]:
        """A callback that shows how far the stage is; a stage may have others inside."""
        stage = _Stage(title, amount)
        if self._level == Level.VERBOSE:
            self._say(f"{title} ...")
        self._open.append(stage)
        try:
            with self._bar(stage) as show:
                yield show
        finally:
            self._open.remove(stage)
        self._seconds[title] = self._seconds.get(title, 0.0) + stage.seconds
        self._say(f"{title}: {duration(stage.seconds)}")

    def end(self) -> None:
        """Say how long it took, and what took longest."""
        self._over.set()
        if len(self._seconds) > 1:
            seconds = time.monotonic() - self._start
            longest = sorted(self._seconds.items(), key=lambda entry: -entry[1])[:LONGEST]
            named = [f"{title} {duration(took)}" for title, took in longest if took >= SHARE * seconds]
            self._say(f"{duration(seconds)} in all" + (f", most of them: {', '.join(named)}" if named else ""))

    @contextmanager
    def others(self) -> Generator[None]:
        """Another process talks in the block."""
        level, self._level = self._level, Level.QUIET
        try:
            yield
        finally:
            self._level = level

    def stop(self) -> None:
        """Say nothing more."""
        self._over.set()

    def _say(self, text: str) -> None:
        self._last_word = time.monotonic()
        if self._level > Level.QUIET:
            is_wide = not has_width(self._console)
            self._console.print(text if is_wide else wrapped(text, self._console.width), soft_wrap=True)

    @contextmanager
    def _bar(self, stage: _Stage) -> Generator[Progress]:
        """Moves a bar where ``stage`` can have one. Those of the stages inside of it stand below."""

        def note(done: int, total: int) -> None:
            stage.done, stage.total = done, total

        if self._level != Level.NORMAL or not is_animated(self._console):  # the log of llama.cpp would run into a bar
            yield note
            return
        outermost = self._bars is None
        bars = self._bars = self._bars or self._new_bars(stage)
        task = bars.add_task(stage.title, total=None, state="")

        def show(done: int, total: int) -> None:
            note(done, total)
            bars.update(task, completed=done, total=total, state=stage.state)

        try:
            if outermost:
                bars.start()
            yield show
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self._bars = None

    def _new_bars(self, stage: _Stage) -> Bars:
        room = self._console.width - len(stage.title) - BESIDE
        bar = [BarColumn(min(BAR, room))] if room > 1 else []
        title, state = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[state]}"))
        columns = (title, *bar, state, TimeRemainingColumn())
        return Bars(*columns, console=self._console, transient=True)

    def _break_silence(self) -> None:
        while not self._over.wait(TICK):
            if time.monotonic() - self._last_word < SILENCE or self._bars is not None:
                continue
            stage = self._open[-1] if self._open else _Stage("at work", _no_amount, self._start)
            amount = f"{stage.state}, " if stage.state else ""
            self._say(f"{stage.title}: {amount}{duration(stage.seconds)} so far")


def _no_amount(done: int, total: int) -> str:
    return ""


def _of_steps(done: int, total: int) -> str:
    return f"{done} of {total}"


def _of_bytes(done: int, total: int) -> str:
    return f"{done / MEGABYTE:.1f} of {total / MEGABYTE:.1f} MB"


# outside of a command nothing is said
_TALK: ContextVar[Talk] = ContextVar("talk", default=Talk(Level.QUIET))  # noqa: B039


@contextmanager
def talk(level: Level) -> Generator[None]:
    """The stages of the block are told as ``level`` says; what they took in all, unless it fails."""
    told = Talk(level)
    token = _TALK.set(told)
    try:
        yield
        told.end()
    finally:
        told.stop()
        _TALK.reset(token)


def others_talk() -> AbstractContextManager[None]:
    """A block in which another process talks."""
    return _TALK.get().others()


@contextmanager
def byte_progress(title: str) -> Generator[Progress]:
    """A stage; gives a callback for bytes done and bytes in all."""
    with _TALK.get().stage(title, _of_bytes) as show:
        yield show


@contextmanager
def step_progress(title: str) -> Generator[Progress]:
    """A stage; gives a callback for steps done and steps in all."""
    with _TALK.get().stage(title, _of_steps) as show:
        yield show
