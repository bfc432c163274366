"""Results of two builds: read from what the runners write, compared, printed, and the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from side_by_side import (
    ABSENT,
    FAILED,
    PASSED,
    SKIPPED,
    STATUSES,
    TIMEOUT,
    Outcome,
    compare,
    counts,
    read_backend_ops,
    read_junit,
    regressions,
    table,
    write_json,
)

CTEST = """<testsuite name="(empty)" tests="5">
  <testcase name="good" classname="good" status="run"><system-out>3 failures expected</system-out></testcase>
  <testcase name="bad" classname="bad" status="fail"><failure message="Failed"/></testcase>
  <testcase name="slow" classname="slow" status="fail"><failure message="Timeout"/></testcase>
  <testcase name="crash" classname="crash" status="fail"><failure message="SEGFAULT"/></testcase>
  <testcase name="model" classname="model" status="notrun"><skipped message="Fixture dependency failed"/></testcase>
</testsuite>"""
PYTEST = """<testsuites><testsuite>
  <testcase classname="tests.test_llama" name="test_version"/>
  <testcase classname="tests.test_llama" name="test_model[a]"><failure message="assert 1 ==&#10;  2"/></testcase>
  <testcase classname="tests.test_llama" name="test_hub"><error message="offline">...</error></testcase>
</testsuite></testsuites>"""


def insert(op: str, params: str, supported: int, passed: int, error: str = "") -> str:
    return (
        "INSERT INTO test_backend_ops (op_name, op_params, supported, passed, error_message) "
        f"VALUES ('{op}', '{params}', '{supported}', '{passed}', '{error}');\n"
    )


SQL = """CREATE TABLE IF NOT EXISTS test_backend_ops (
  op_name TEXT,
  op_params TEXT,
  supported INTEGER,
  passed INTEGER,
  error_message TEXT
);

"""


def results(**statuses: str) -> dict[str, Outcome]:
    return {name: Outcome(status) for name, status in statuses.items()}


def test_junit_of_ctest() -> None:
    assert read_junit(CTEST) == {
        "good": Outcome(PASSED),
        "bad": Outcome(FAILED, "Failed"),
        "slow": Outcome(TIMEOUT, "Timeout"),
        "crash": Outcome(FAILED, "SEGFAULT"),
        "model": Outcome(SKIPPED, "Fixture dependency failed"),
    }


def test_junit_of_pytest_names_the_file_and_keeps_a_reason_on_one_line() -> None:
    assert read_junit(PYTEST) == {
        "tests.test_llama::test_version": Outcome(PASSED),
        "tests.test_llama::test_model[a]": Outcome(FAILED, "assert 1 == 2"),
        "tests.test_llama::test_hub": Outcome(FAILED, "offline"),
    }


def test_operators_pass_fail_or_are_not_supported() -> None:
    sql = SQL + insert("ADD", "type=f32", 1, 1) + insert("ADD", "type=f16", 1, 0, "too far") + insert("SIN", "", 0, 0)
    assert read_backend_ops(sql) == {
        "ADD(type=f32)": Outcome(PASSED),
        "ADD(type=f16)": Outcome(FAILED, "too far"),
        "SIN()": Outcome(SKIPPED, "not supported"),
    }


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_case_that_occurs_twice_passes_only_if_it_passes_twice(order: tuple[int, int]) -> None:
    sql = SQL + "".join(insert("ADD", "type=f32", 1, passed) for passed in order)
    assert read_backend_ops(sql)["ADD(type=f32)"].status == FAILED


def test_operators_up_to_a_crash_are_kept() -> None:
    whole = insert("ADD", "type=f32", 1, 1)
    assert list(read_backend_ops(SQL + whole + insert("MUL", "type=f32", 1, 1)[:-20])) == ["ADD(type=f32)"]
    assert read_backend_ops("") == {}


@pytest.mark.parametrize("unpatched", STATUSES)
@pytest.mark.parametrize("patched", STATUSES)
def test_only_what_passes_unpatched_and_not_patched_is_a_regression(unpatched: str, patched: str) -> None:
    rows = compare("ctest", results(a=unpatched), results(a=patched))
    assert bool(regressions(rows)) == (unpatched == PASSED and patched != PASSED)


def test_a_test_that_only_one_build_reports_is_absent_in_the_other() -> None:
    rows = compare("ctest", results(b=PASSED, a=PASSED), results(a=PASSED, c=PASSED))
    assert [(row.test, row.unpatched.status, row.patched.status) for row in rows] == [
        ("b", PASSED, ABSENT),
        ("a", PASSED, PASSED),
        ("c", ABSENT, PASSED),
    ]
    assert [row.test for row in regressions(rows)] == ["b"]


def test_counts_are_by_build_and_status() -> None:
    rows = compare("ctest", results(a=PASSED, b=FAILED, c=SKIPPED), results(a=PASSED, b=PASSED, c=TIMEOUT))
    assert counts(rows) == {
        "unpatched": {PASSED: 1, FAILED: 1, TIMEOUT: 0, SKIPPED: 1, ABSENT: 0},
        "patched": {PASSED: 2, FAILED: 0, TIMEOUT: 1, SKIPPED: 0, ABSENT: 0},
    }


def test_the_table_shows_cases_that_ended_alike_in_one_line() -> None:
    names = [f"ADD(n={n})" for n in range(4)]
    unpatched = dict.fromkeys(names, Outcome(PASSED))
    patched = unpatched | {names[2]: Outcome(FAILED, "NaN")}
    lines = table(compare("backend-ops", unpatched, patched)).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["suite", "test", "unpatched", "patched"],
        ["backend-ops", "ADD", "(3", "cases)", "passed", "passed"],
        ["backend-ops", "ADD", "passed", "failed"],
    ]
    assert ["count", "passed", "4", "3"] in [line.split() for line in lines]
    assert lines[-2] == "1 of 4 tests pass on the unpatched build and not on the patched one"
    assert lines[-1] == "  backend-ops: ADD(n=2): failed NaN"


def test_the_columns_stand_under_each_other() -> None:
    lines = table(compare("ctest", results(a=PASSED, longer=FAILED), results(a=FAILED, longer=PASSED))).splitlines()
    assert len({line.index(word) for line, word in zip(lines, ("unpatched", "passed", "failed"), strict=False)}) == 1


def test_json_has_the_same(tmp_path: Path) -> None:
    rows = compare("ctest", results(a=PASSED, b=PASSED), {"a": Outcome(FAILED, "NaN"), "b": Outcome(PASSED)})
    write_json(tmp_path / "out.json", rows)
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["tests"][0] == {
        "suite": "ctest",
        "test": "a",
        "unpatched": {"status": PASSED, "detail": ""},
        "patched": {"status": FAILED, "detail": "NaN"},
    }
    assert data["counts"] == counts(rows)
    assert data["regressions"] == [{"suite": "ctest", "test": "a"}]
