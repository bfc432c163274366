"""Tasks with one right answer, in the form of GSM8K: JSON lines of a ``question`` and an ``answer`` after ``####``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import artifact

MAX_BYTES = 64 << 20
SHOTS = 4
NEXT_QUESTION = "\nQuestion:"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Task:
    """``prompt`` holds the examples and the question; ``answer`` is the final answer alone."""

    prompt: str
    answer: str

    def is_solved_by(self, text: str) -> bool:
        """Whether the final answer of what a model wrote is the right one, exactly."""
        return final_answer(text.split(NEXT_QUESTION)[0]) == self.answer


def final_answer(text: str) -> str | None:
    """What follows ``####``, or else the last number; None where there is neither. Commas in numbers do not count."""
    _, mark, after = text.rpartition("####")
    if mark:
        found = _NUMBER.match(after.strip())
        return _plain(found.group()) if found else after.strip().split("\n")[0] or None
    numbers = _NUMBER.findall(text)
    return _plain(numbers[-1]) if numbers else None


def _plain(number: str) -> str:
    return number.replace(",", "").removesuffix(".0")


def load_tasks(path: Path, n_tasks: int | None = None, n_shots: int = SHOTS) -> list[Task]:
    """The first ``n_tasks`` of the file (None: all), each after the same ``n_shots`` examples: the file's last lines.

    Raises `KvtunerError` naming the line that is no task, or where there are too few.
    """
    lines = artifact.read(path, MAX_BYTES, "file of tasks").splitlines()
    entries = [_entry(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    n_left = len(entries) - n_shots
    if n_left < max(1, n_tasks or 1):
        raise KvtunerError(
            f"{path} has {len(entries)} tasks, {n_shots} of which are examples: give more, or ask for fewer"
        )
    examples = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in entries[n_left:])
    return [_task(path, number, examples, *entry) for number, entry in enumerate(entries[:n_left][:n_tasks], start=1)]


def _entry(path: Path, number: int, line: bytes) -> tuple[str, str]:
    try:
        data = json.loads(line)
        question, answer = data["question"], data["answer"]
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise KvtunerError(f"{path}, line {number}: no JSON object with 'question' and 'answer': correct it") from err
    if not isinstance(question, str) or not isinstance(answer, str):
        raise KvtunerError(f"{path}, line {number}: 'question' and 'answer' must be texts: correct it")
    return question.strip(), answer.strip()


def _task(path: Path, number: int, examples: str, question: str, answer: str) -> Task:
    final = final_answer(answer)
    if final is None:
        raise KvtunerError(f"{path}, task {number}: the answer has no number and no '####': correct it")
    return Task(f"{examples}Question: {question}\nAnswer:", final)
