"""How many tasks a model fails with a cache, decoded greedily by the built llama.cpp."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvtuner_gguf.engine.llama.native import Context, Model, open_model
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.tasks import NEXT_QUESTION, Task
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.progress import Progress

N_BATCH = 256
N_PREDICT = 256


class TaskRunner:
    """Tasks for one loaded model; use it as a context manager."""

    def __init__(
        self, path: Path, tasks: Sequence[Task], n_threads: int | None = None, n_predict: int = N_PREDICT
    ) -> None:
        self._opening = open_model(path, n_threads)
        self._tasks, self._n_predict = tasks, n_predict
        texts = "".join(f"{task.prompt}\0{task.answer}\0" for task in tasks)
        self.name = hashlib.sha256(f"{texts}{n_predict}".encode()).hexdigest()[:16]

    def __enter__(self) -> TaskRunner:
        self._model: Model = self._opening.__enter__()
        self._prompts = [self._model.tokenize(task.prompt) for task in self._tasks]
        return self

    def __exit__(self, *reason: object) -> None:
        self._opening.__exit__(*reason)

    def failed_share(self, plan: Plan, progress: Progress | None = None) -> float:
        """The share of the tasks, 0 to 1, that are not solved with the caches of ``plan``.

        Raises `KvtunerError` where the plan does not fit the model.
        """
        n_ctx = max(map(len, self._prompts)) + self._n_predict
        failed = 0
        with self._model.contexts([plan], n_ctx, N_BATCH) as (context,):
            for done, (task, prompt) in enumerate(zip(self._tasks, self._prompts, strict=True)):
                failed += not task.is_solved_by(self._answer(context, prompt))
                if progress:
                    progress(done + 1, len(self._tasks))
        return failed / len(self._tasks)

    def _answer(self, context: Context, prompt: np.ndarray) -> str:
        context.clear()
        token, position = _read_prompt(context, prompt), len(prompt)
        raw = b""
        for _ in range(self._n_predict):
            if self._model.ends(token):
                break
            raw += self._model.piece(token)
            if NEXT_QUESTION.encode() in raw:
                break
            token = int(context.decode(np.array([token], np.int32), position, True)[0].argmax())
            position += 1
        return raw.decode(errors="replace")


def _read_prompt(context: Context, prompt: np.ndarray) -> int:
    """The token that follows ``prompt``."""
    if not len(prompt):
        raise KvtunerError("a task without a prompt: correct the file of tasks")
    for start in range(0, len(prompt), N_BATCH):
        part = prompt[start : start + N_BATCH]
        logits = context.decode(part, start, start + len(part) == len(prompt))
    return int(logits[-1].argmax())
