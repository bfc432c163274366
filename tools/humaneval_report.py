"""The programs of each cache as a table and as JSON, with what differs from the f16 cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from humaneval_server import BASELINE
from humaneval_tasks import Answer
from rich.console import Console
from rich.table import Table
from sandbox import PASSED, STATUSES, Outcome

FILE_WIDTH = 140
HEADERS = ("cache K/V", "bits/value", "passed", "pass@1 %", *STATUSES[1:], "cut", "same text", "gained", "lost")


@dataclass(frozen=True)
class Row:
    """One cache: its answers and how their programs ended, by the task's name."""

    name: str
    bits_per_value: float
    answers: Mapping[str, Answer]
    outcomes: Mapping[str, Outcome]

    @property
    def counts(self) -> Counter[str]:
        return Counter(outcome.status for outcome in self.outcomes.values())

    @property
    def passed(self) -> set[str]:
        return {task for task, outcome in self.outcomes.items() if outcome.status == PASSED}

    @property
    def n_cut(self) -> int:
        """Answers that the limit of tokens has ended."""
        return sum(answer.is_cut for answer in self.answers.values())


@dataclass(frozen=True)
class Difference:
    """A cache against f16: how many answers have the same text, and the tasks that pass with one of both alone."""

    n_same: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]

    @classmethod
    def between(cls, row: Row, base: Row) -> Difference:
        n_same = sum(answer.text == base.answers[task].text for task, answer in row.answers.items())
        gained = (task for task in row.answers if task in row.passed - base.passed)
        lost = (task for task in row.answers if task in base.passed - row.passed)
        return cls(n_same, tuple(gained), tuple(lost))


def differences(rows: Sequence[Row]) -> list[Difference | None]:
    """Each row against that of f16; None for f16 itself and where it was not run."""
    base = next((row for row in rows if row.name == BASELINE), None)
    return [None if base is None or row is base else Difference.between(row, base) for row in rows]


def print_table(rows: Sequence[Row], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for i, header in enumerate(HEADERS):
        table.add_column(header, justify="right" if i else "left", no_wrap=True)
    for row, difference in zip(rows, differences(rows), strict=True):
        table.add_row(*cells(row), *difference_cells(difference))
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(table)
    for row, difference in zip(rows, differences(rows), strict=True):
        for verb in ("gained", "lost"):
            if tasks := getattr(difference, verb, ()):
                console.print(f"{row.name} {verb}: {', '.join(tasks)}", highlight=False)


def cells(row: Row) -> list[str]:
    n_passed = len(row.passed)
    share = f"{100 * n_passed / len(row.outcomes):.1f}"
    ends = (str(row.counts[status]) for status in STATUSES[1:])
    return [row.name, f"{row.bits_per_value:.2f}", str(n_passed), share, *ends, str(row.n_cut)]


def difference_cells(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["-"] * 3
    return [str(difference.n_same), str(len(difference.gained)), str(len(difference.lost))]


def rows_to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per cache the counts, the differences from f16, and each task's end and reason."""
    return [row_to_json(*pair) for pair in zip(rows, differences(rows), strict=True)]


def row_to_json(row: Row, difference: Difference | None) -> dict[str, Any]:
    return {
        "cache": row.name,
        "bits_per_value": row.bits_per_value,
        "tasks": len(row.outcomes),
        **{status: row.counts[status] for status in STATUSES},
        "pass_at_1": len(row.passed) / len(row.outcomes),
        "cut": row.n_cut,
        "against_f16": difference and vars(difference),
        "outcomes": {task: vars(outcome) for task, outcome in row.outcomes.items()},
    }
