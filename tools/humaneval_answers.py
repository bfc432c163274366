"""A model's answers with one cache, in a file that an interrupted run goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from humaneval_server import Cache, Setup
from humaneval_tasks import Answer, Task

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.report.stages import step_progress

SCHEMA = "kvtuner.humaneval/1"


class AnswerFile:
    """The settings in the first line, then one answer a line. `answers` are by the task's name.

    Raises `KvtunerError` where ``path`` holds answers of other ``settings``, or something else. What a kill has left
    of a last line is cut off.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        wanted = {"schema": SCHEMA, **settings}
        header, *rows = self._whole_lines() or [None]
        if header is None:
            self._append(wanted)
        elif header != wanted:
            raise KvtunerError(f"{path} is of another run ({_difference(header, wanted)}): give another --out")
        self.answers = {row["task"]: Answer(row["text"], row["n_tokens"], row["is_cut"]) for row in rows}

    def add(self, task: Task, answer: Answer) -> None:
        self._append({"task": task.id, **asdict(answer)})
        self.answers[task.id] = answer

    def _whole_lines(self) -> list[Any]:
        if not self.path.exists():
            return []
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
        except ValueError as err:
            raise KvtunerError(f"{self.path} holds no answers: give another --out") from err
        if len(whole) < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return rows

    def _append(self, row: Mapping[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
        except OSError as err:
            raise KvtunerError(f"cannot write {self.path}: {err.strerror}; give another --out") from err


def _difference(header: object, wanted: Mapping[str, Any]) -> str:
    if not isinstance(header, dict):
        return "its first line has no settings"
    keys = [key for key in {**wanted, **header} if header.get(key) != wanted.get(key)]
    return "; ".join(f"{key}: {header.get(key)!r}, now {wanted.get(key)!r}" for key in keys)


def collect(setup: Setup, cache: Cache, tasks: Sequence[Task], path: Path) -> dict[str, Answer]:
    """The answers to ``tasks`` by name, those that ``path`` has and new ones, which are added to it."""
    file = AnswerFile(path, setup.settings(cache))
    missing = [task for task in tasks if task.id not in file.answers]
    if missing:
        with step_progress(f"{cache.name}: answers") as progress, setup.serving(cache) as server:
            for task, answer in _in_slots(lambda task: setup.ask(server, task), missing, setup.n_parallel):
                file.add(task, answer)
                progress(sum(task.id in file.answers for task in tasks), len(tasks))
    return {task.id: file.answers[task.id] for task in tasks}


def _in_slots(ask: Callable[[Task], Answer], tasks: Sequence[Task], n_parallel: int) -> Iterator[tuple[Task, Answer]]:
    """Each task with its answer, in the order in which they come."""
    pool = ThreadPoolExecutor(n_parallel)
    try:
        futures = {pool.submit(ask, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:  # the server ends before the requests that it is still busy with
        pool.shutdown(wait=False, cancel_futures=True)
