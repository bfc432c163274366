"""What a tuning keeps on disk, and what is done with damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.tuning.journal import Journal
from kvtuner_gguf.tuning.work import Work


class Number:
    def __init__(self, value: int) -> None:
        self.value = value

    def to_json(self) -> dict:
        return {"value": self.value}

    @classmethod
    def from_json(cls, data: object) -> Number:
        return cls(data["value"])


def never() -> float:
    raise AssertionError("it was measured again")


def test_a_journal_gives_back_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    values = {"a": 0.1, "b b": 1e-17, "c": {"mean": 2 / 3}}
    for key, value in values.items():
        assert Journal(path).remember(key, lambda value=value: value) == value
    again = Journal(path)
    assert {key: again.remember(key, never) for key in values} == values
    assert Journal().remember("a", lambda: 2.0) == 2.0


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_cut_short_is_forgotten(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).remember("first", lambda: 1.0)
    Journal(path).remember("second", lambda: 2.0)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path)
    assert journal.remember("first", never) == 1.0
    assert journal.remember("second", lambda: 3.0) == 3.0
    assert Journal(path).remember("second", never) == 3.0


@pytest.mark.parametrize(
    "line", [b"[", b"{}", b"[1, 2]", b'["a", "b"]', b'["a", 1, 2]', b'["a", true]', b"\xff\xfe", b"[" * 5000]
)
def test_a_damaged_journal_is_an_error_of_one_line(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'["a", 1.0]\n' + line + b"\n")
    with pytest.raises(KvtunerError, match="line 2: no entry of a journal"):
        Journal(path)


def test_finished_stages_are_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    first = Work(folder, {"seed": 1, "sizes": (1, 2)})
    assert first.stage("one", Number.from_json, lambda: Number(5)).value == 5
    again = Work(folder, {"seed": 1, "sizes": (1, 2)})
    assert again.stage("one", Number.from_json, never).value == 5
    assert again.stage("one", Number.from_json, lambda: Number(6), lambda found: found.value > 5).value == 6
    assert Work(None, {}).stage("one", Number.from_json, lambda: Number(7)).value == 7


def test_another_tuning_is_refused_or_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Work(folder, {"seed": 1}).stage("one", Number.from_json, lambda: Number(5))
    with pytest.raises(KvtunerError, match=r"seed 1, not 2: begin anew with --fresh"):
        Work(folder, {"seed": 2})
    assert Work(folder, {"seed": 2}, fresh=True).stage("one", Number.from_json, lambda: Number(6)).value == 6


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_something_else_is_left_alone(fresh: bool, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(KvtunerError, match="not empty"):
        Work(tmp_path, {"seed": 1}, fresh)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_damaged_records_and_stages_say_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Work(folder, {"seed": 1}).stage("one", Number.from_json, lambda: Number(5))
    (folder / "one.json").write_text("{")
    with pytest.raises(KvtunerError, match=r"one\.json: not JSON"):
        Work(folder, {"seed": 1}).stage("one", Number.from_json, never)
    (folder / "tuning.json").write_text(json.dumps([1]))
    with pytest.raises(KvtunerError, match="no record of a tuning"):
        Work(folder, {"seed": 1})
