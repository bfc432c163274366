"""A genetic search that several processes share, and what becomes of those that are killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

import optuna
from optuna.trial import TrialState

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.front import pareto
from kvtuner_gguf.plan.sizes import Sizes
from kvtuner_gguf.tuning import storages
from kvtuner_gguf.tuning.storages import open_storage, shown
from kvtuner_gguf.tuning.together import IDENTITY, SharedStudy, points_of
from tests.join_search import GROUPS, TUNING, join, loss

ROOT = Path(__file__).parents[2]
TRIALS = 20


@contextmanager
def worker(storage: str, seconds: float = 0.05) -> Generator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.join_search", storage, str(TRIALS), str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            yield process
        finally:
            process.kill()


def front_of(process: subprocess.Popen[str]) -> list[str]:
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return [line.removeprefix("front ") for line in said.splitlines() if line.startswith("front")]


def recomputed(storage: str) -> list[str]:
    """The front of all finished trials of the study."""
    trials = SharedStudy(storage).finished()
    assert len(trials) >= TRIALS
    points = points_of(trials, GROUPS)
    assert all(point.loss == loss(pairs) for pairs, point in points.items())
    sizes = Sizes(GROUPS.model)
    within = [point for pairs, point in points.items() if sizes.bits(sizes.plan(pairs)) <= 8.0]
    return [f"{point.loss} {' '.join(map(str, point.pairs))}" for point in pareto(within, sizes)]


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "study.log") if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


def test_one_of_two_is_killed_and_the_other_finishes(storage: str) -> None:
    with worker(storage, seconds=0.1) as killed, worker(storage, seconds=0.1) as other:
        for _ in range(3):
            assert killed.stdout is not None
            assert killed.stdout.readline().startswith("measure")
        killed.kill()
        found = front_of(other)
    study = SharedStudy(storage).study
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == TRIALS
    assert len(study.get_trials(states=(TrialState.RUNNING,))) == 1, "what was killed is left as it was"
    assert found == recomputed(storage)
    assert found == join(storage, TRIALS), "who comes when all is done measures nothing, and has the same front"


def test_two_end_with_the_same_front_and_measure_different_plans(storage: str) -> None:
    with worker(storage) as one, worker(storage) as other:
        fronts = front_of(one), front_of(other)
    assert fronts[0] == fronts[1]
    plans = [tuple(trial.params.values()) for trial in SharedStudy(storage).finished()]
    assert TRIALS <= len(plans) <= TRIALS + 1
    assert len(set(plans)) > TRIALS // 2


def test_what_another_has_measured_is_not_measured_again(storage: str) -> None:
    first: list = []
    join(storage, TRIALS, seen=first)
    second: list = []
    join(storage, 2 * TRIALS, seen=second)
    assert len(first) == len(set(first))
    assert second
    assert not set(first) & set(second)
    assert len(SharedStudy(storage).finished()) == 2 * TRIALS


def test_a_trial_without_signs_of_life_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages, "HEARTBEAT", 1)
    storage = f"sqlite:///{tmp_path}/study.db"
    with worker(storage, seconds=60) as killed:
        assert killed.stdout is not None
        line = killed.stdout.readline()
        while not beaten(storage):
            time.sleep(0.05)
        killed.kill()
    monkeypatch.setattr("tests.join_search.time.sleep", lambda seconds: None)
    (running,) = SharedStudy(storage).study.get_trials(states=(TrialState.RUNNING,))
    beaten(storage, "-1 hour")
    seen: list = []
    join(storage, TRIALS, seen=seen)
    assert SharedStudy(storage).study.trials[running.number].state == TrialState.FAIL
    assert f"measure {' '.join(map(str, seen[0]))}\n" != line, "it goes to the end of the queue"
    assert line in [f"measure {' '.join(map(str, pairs))}\n" for pairs in seen]


def beaten(storage: str, age: str = "0 hours") -> int:
    """How many trials have given a sign of life; the last one is made ``age`` old."""
    import sqlalchemy

    with open_storage(storage).engine.begin() as connection:
        command = f"UPDATE trial_heartbeats SET heartbeat = datetime('now', '{age}')"
        return connection.execute(sqlalchemy.text(command)).rowcount


def test_the_front_of_the_first_to_finish_counts(storage: str) -> None:
    join(storage, TRIALS)
    shared = SharedStudy(storage)
    before = [trial.number for trial in shared.counted(TRIALS)]
    shared.study.add_trial(optuna.trial.create_trial(values=[0.0, 4.5], **like(shared.finished()[0])))
    assert [trial.number for trial in shared.counted(TRIALS)] == before
    assert len(shared.counted(TRIALS + 1)) == len(before) + 1


def like(trial: optuna.trial.FrozenTrial) -> dict:
    return {"params": trial.params, "distributions": trial.distributions}


def test_a_trial_that_another_has_told_does_not_end_the_search(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    errors, optimize = [ValueError("Cannot tell a COMPLETE trial."), ValueError("another")], optuna.Study.optimize

    def told_twice(study: optuna.Study, *args: Any, **options: Any) -> None:
        if errors:
            raise errors.pop(0)
        optimize(study, *args, **options)

    monkeypatch.setattr(optuna.Study, "optimize", told_twice)
    with pytest.raises(ValueError, match="another"):
        join(storage, 4)
    errors.append(ValueError("Cannot tell a FAIL trial."))
    assert join(storage, 4)
    assert len(SharedStudy(storage).finished()) == 4


def test_another_tuning_is_refused_by_name(storage: str) -> None:
    join(storage, 4)
    shared = SharedStudy(storage)
    shared.check(TUNING)
    with pytest.raises(KvtunerError, match=r"study\.\w+ holds a tuning with --text a\.txt, not b\.txt: choose another"):
        shared.check({**TUNING, "text": "b.txt"})
    groups = shared.study.user_attrs[IDENTITY]["group"]
    with pytest.raises(KvtunerError, match=r"group 4 layers 4 of q4_0/q4_0.*, not layers 4 of f16: .* same profile"):
        shared.check({**TUNING, "group": {**groups, "4": "layers 4 of f16"}})


def test_a_study_of_something_else_is_refused(storage: str) -> None:
    optuna.create_study(study_name="kvtuner", storage=open_storage(storage)).optimize(lambda trial: 0.0, 1)
    with pytest.raises(KvtunerError, match="holds a study of something else: choose another --storage"):
        SharedStudy(storage).check(TUNING)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("none/study.log", "cannot write none/study.log: there is no folder"),
        ("journal://none/study.log", "cannot write none/study.log: there is no folder"),
        ("sqlite:///none/study.db", "--storage sqlite:///none/study.db: unable to open database file; see that"),
        ("redis://me:secret@host/0", "--storage redis://...: unknown kind: give the path of a journal, or a URL of"),
        ("mysql+nodriver://me:secret@host/db", "--storage mysql+nodriver://host/db: no URL of a database"),
        ("postgresql://me:secret@host:many/db", "--storage postgresql://...: no URL of a database"),
        ("postgresql+asyncpg9://me:se@cret@host/db", "--storage postgresql+asyncpg9://host/db: no URL of a database"),
        ("postgresql://me:{secret}@host/db", "--storage postgresql://host/db: no URL of a database"),
        ("mysql://me:secret@host/db?password=secret", "--storage mysql://host/db: MySQLdb is not installed: pip"),
        ("sqlite:///text.log", "--storage sqlite:///text.log: file is not a database"),
        ("text.log", "text.log is no journal of Optuna: choose another path with --storage"),
        ("folder", "cannot write folder: it is a folder"),
    ],
)
def test_a_storage_of_no_use_is_told_without_the_password(
    url: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.log").write_text("years of work\n" * 100)
    with pytest.raises(KvtunerError) as caught:
        SharedStudy(url)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "cret@" not in str(caught.value)
    assert (tmp_path / "text.log").read_text() == "years of work\n" * 100


def test_a_database_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy.exc

    def refuse(url: str) -> None:
        raise sqlalchemy.exc.OperationalError("SELECT", {}, OSError("no host takes secret\nmore"))

    monkeypatch.setattr(storages, "_connected", refuse)
    with pytest.raises(KvtunerError, match=r"^--storage mysql://host/db: no host takes \*\*\*; see that it runs"):
        SharedStudy("mysql://me:secret@host/db")


@pytest.mark.parametrize("work", [lambda study: study.finished(), lambda study: study.study.set_user_attr("a", 1)])
def test_a_journal_whose_disk_goes_away_is_told(work: Callable[[SharedStudy], object], tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    study = SharedStudy(str(folder / "study.log"))
    folder.rename(tmp_path / "gone")
    with pytest.raises(KvtunerError, match=r"study\.log: No such file or directory; see that its disk is there"):
        work(study)


def test_a_full_disk_under_a_journal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = SharedStudy(str(tmp_path / "study.log"))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        KvtunerError, match=r"study\.log: No space left on device; see that its disk is there, has room"
    ):
        study.study.set_user_attr("a", 1)


def test_a_url_is_shown_without_what_is_secret() -> None:
    assert shown("postgresql+psycopg://me:secret@host:5432/db?password=x") == "postgresql+psycopg://host:5432/db"
    assert shown("journal:///shared/study.log") == shown("/shared/study.log") == "/shared/study.log"
    for typo in ("postgresql:/me:secret@host/db", "postgres:me:secret@host/db", "mysql+pymysql:me:secret@host/db"):
        assert "secret" not in shown(typo)
        with pytest.raises(KvtunerError) as caught:
            open_storage(typo)
        assert "secret" not in str(caught.value)


def test_a_study_that_another_worker_claims_at_once_is_checked_again(storage: str) -> None:
    mine, other = SharedStudy(storage), SharedStudy(storage)

    def starts() -> Iterator[dict[str, int]]:
        with pytest.raises(KvtunerError, match="holds a tuning with"):
            other.claim({**TUNING, "text": "b.txt"}, [])
        yield from ()

    mine.claim(TUNING, starts())
    mine.check(TUNING)
