"""Test results of the unpatched and the patched build: read them, compare them, print them in one table.

Results of a suite are a dict from test name to `Outcome`.
"""

from __future__ import annotations

import json
import re
import sqlite3
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kvtuner_gguf.files import atomicfile

PASSED, FAILED, TIMEOUT, SKIPPED, ABSENT = STATUSES = ("passed", "failed", "timeout", "skipped", "absent")
BUILDS = ("unpatched", "patched")
STATEMENT = re.compile(r"^(?:CREATE|INSERT) .*?\);$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """How a test ended, and in the runner's words why."""

    status: str
    detail: str = ""


Results = Mapping[str, Outcome]


@dataclass(frozen=True)
class Row:
    """A test of a suite on both builds."""

    suite: str
    test: str
    unpatched: Outcome
    patched: Outcome

    @property
    def is_regression(self) -> bool:
        return self.unpatched.status == PASSED != self.patched.status

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What the table shows in one line: the cases of an operator, ``ADD(type=f32,...)``, that ended alike."""
        return self.suite, self.test.partition("(")[0], self.unpatched.status, self.patched.status


def read_junit(text: str) -> dict[str, Outcome]:
    """Results from the JUnit XML of ctest or pytest."""
    results = {}
    for case in ET.fromstring(text).iter("testcase"):
        name, owner = case.get("name", ""), case.get("classname", "")
        results[name if owner in ("", name) else f"{owner}::{name}"] = _junit_outcome(case)
    return results


def _junit_outcome(case: ET.Element) -> Outcome:
    for tag, status in (("failure", FAILED), ("error", FAILED), ("skipped", SKIPPED)):
        child = case.find(tag)
        if child is not None:
            detail = " ".join(child.get("message", "").split())
            return Outcome(TIMEOUT if detail == "Timeout" else status, detail)
    return Outcome(PASSED)


def read_backend_ops(sql: str) -> dict[str, Outcome]:
    """Results from ``test-backend-ops --output sql``. A case that occurs twice passes if it passes both times."""
    database = sqlite3.connect(":memory:")
    statements = STATEMENT.findall(sql)  # without one that a crash cut off
    for statement in statements:
        database.execute(statement)
    results: dict[str, Outcome] = {}
    cases = "SELECT op_name, op_params, min(supported), min(passed), max(error_message) FROM test_backend_ops"
    cases += " GROUP BY op_name, op_params ORDER BY min(rowid)"
    for op, params, supported, passed, error in database.execute(cases) if statements else ():
        status = PASSED if passed else FAILED if supported else SKIPPED
        results[f"{op}({params})"] = Outcome(status, error if supported else "not supported")
    return results


def compare(suite: str, unpatched: Results, patched: Results) -> list[Row]:
    """A row per test, in the order of the unpatched build; a test that a build did not report is absent there."""
    names = dict.fromkeys((*unpatched, *patched))
    absent = Outcome(ABSENT)
    return [Row(suite, name, unpatched.get(name, absent), patched.get(name, absent)) for name in names]


def regressions(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.is_regression]


def counts(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """For each build how many tests ended in which status."""
    rows = list(rows)
    found = {build: Counter(getattr(row, build).status for row in rows) for build in BUILDS}
    return {build: {status: found[build][status] for status in STATUSES} for build in BUILDS}


def table(rows: Iterable[Row]) -> str:
    """The rows side by side, with the cases of an operator in one line where they ended alike, then the counts."""
    rows = list(rows)
    lines = [("suite", "test", *BUILDS)]
    for (suite, name, *statuses), number in Counter(row.group for row in rows).items():
        lines.append((suite, f"{name} ({number} cases)" if number > 1 else name, *statuses))
    total = counts(rows)
    numbers = [("count", status, *(str(total[build][status]) for build in BUILDS)) for status in STATUSES]
    return "\n".join((_columns([*lines, *numbers]), *_verdict(rows)))


def _columns(lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _verdict(rows: list[Row]) -> list[str]:
    worse = regressions(rows)
    lines = [f"{len(worse)} of {len(rows)} tests pass on the unpatched build and not on the patched one"]
    return lines + [f"  {row.suite}: {row.test}: {row.patched.status} {row.patched.detail}".rstrip() for row in worse]


def write_json(path: Path, rows: Iterable[Row]) -> None:
    """The same as data: ``tests``, ``counts`` and the names of the ``regressions`` by suite."""
    rows = list(rows)
    worse = [{"suite": row.suite, "test": row.test} for row in regressions(rows)]
    data = {"tests": [asdict(row) for row in rows], "counts": counts(rows), "regressions": worse}
    atomicfile.write_text(path, json.dumps(data, indent=1) + "\n")
