"""What a tuning keeps on disk, and what is done with damage."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile
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
    with pytest.raises(KvtunerError, match=r"--seed 1, not 2: begin anew with --fresh"):
        Work(folder, {"seed": 2})
    assert Work(folder, {"seed": 2}, fresh=True).stage("one", Number.from_json, lambda: Number(6)).value == 6


def test_a_folder_is_taken_with_the_first_measurement(tmp_path: Path) -> None:
    """Settings that fail before they measure anything do not stand in the way of others."""
    for keep in (
        lambda work: work.stage("one", Number.from_json, lambda: Number(5)),
        lambda work: work.journal.remember("one", lambda: 5.0),
        lambda work: work.file("storage").write_text("5"),
    ):
        folder = tmp_path / "work"
        for seed in (1, 2):
            Work(folder, {"seed": seed})
            assert not list(folder.iterdir())
        work = Work(folder, {"seed": 3})
        with pytest.raises(AssertionError):
            work.stage("failed", Number.from_json, never)
        assert not list(folder.iterdir())
        keep(work)
        Work(folder, {"seed": 3})
        with pytest.raises(KvtunerError, match=r"--seed 3, not 4"):
            Work(folder, {"seed": 4})
        shutil.rmtree(folder)


def test_a_kill_in_the_first_write_is_no_trap(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Work(folder, {"seed": 1})
    with atomicfile.replacing(folder / "tuning.json"):
        left = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "tuning.json").unlink()
    for name, raw in left.items():
        (folder / name).write_bytes(raw)
    assert len(list(folder.iterdir())) == 1
    assert Work(folder, {"seed": 2}).stage("one", Number.from_json, lambda: Number(6)).value == 6


def test_differences_are_told_in_words(tmp_path: Path) -> None:
    model = {"architecture": "llama", "n_head_kv": [2, 2], "head_dim_k": 64}
    record = {"center": True, "model": model, "text": "a.txt"}
    Work(tmp_path, record).stage("one", Number.from_json, lambda: Number(5))
    for change, words in (
        ({"model": {**model, "fingerprint": "a"}}, "another model: "),
        ({"model": {**model, "head_dim_k": 32}}, "model head dim k 64, not 32: "),
        ({"model": {**model, "n_head_kv": [2, 1]}}, "model n head kv 2,2, not 2,1: "),
        ({"model": {**model, "n_head_kv": [1] * 500}}, "model n head kv 2,2, not 1,1,1,1,1"),
        ({"center": False}, "--center on, not off: "),
        ({"text": None}, "--text a.txt, not none: "),
        ({"device": "cuda"}, "--device none, not cuda: "),
    ):
        with pytest.raises(KvtunerError) as caught:
            Work(tmp_path, {**record, **change})
        assert f"holds a tuning with {words}" in str(caught.value)
        assert not set("{}[]'") & set(str(caught.value).removeprefix(str(tmp_path)))
        assert len(str(caught.value)) < len(str(tmp_path)) + 300
        assert "--fresh" in str(caught.value)


def test_fresh_empties_a_folder_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    Work(tmp_path / "link", {"seed": 1}).stage("one", Number.from_json, lambda: Number(5))
    (tmp_path / "far" / "below").mkdir()
    Work(tmp_path / "link", {"seed": 2}, fresh=True)
    assert (tmp_path / "link").is_symlink()
    assert not list((tmp_path / "far").iterdir())


@pytest.mark.parametrize("place", ["no folder", "record is a pipe"])
def test_a_folder_of_no_use_is_refused_at_once(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    if place == "no folder":
        folder.write_text("")
    else:
        folder.mkdir()
        os.mkfifo(folder / "tuning.json")
    with pytest.raises(KvtunerError, match=r"cannot (use|write)"):
        Work(folder, {"seed": 1})


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
