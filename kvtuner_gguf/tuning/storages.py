"""The storages of Optuna that several machines share: a journal on a shared disk, or a database."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.tuning.storageurl import check_storage, journal_path

# of drivers whose package has another name
PACKAGES = {"psycopg2": "psycopg2-binary", "psycopg": "'psycopg[binary]'", "MySQLdb": "mysqlclient"}
# seconds between two signs of life of a trial: after twice that without one, another worker runs it again
HEARTBEAT = 60
# seconds that a process waits for the others to write
SQLITE_WAIT = 60
# how often a trial is run again: it may be what ends its workers
RETRIES = 2
# seconds in which a connection is tried again, and between two: workers that begin at once make the same tables
CONNECTING, PAUSE = 10, 0.5


def open_storage(url: str) -> BaseStorage:
    """What ``url`` names: a path, or ``journal://PATH``, or a database by a URL of SQLAlchemy.

    Raises `KvtunerError` where it cannot be reached or written; messages have no password.
    """
    check_storage(url)
    path = journal_path(url)
    return _database(url) if path is None else _journal(path)


def shown(url: str) -> str:
    """``url`` without user, password and options."""
    if (path := journal_path(url)) is not None:
        return str(path)
    try:
        parts = make_url(url)
    except (SQLAlchemyError, ValueError):  # whatever is in it may be a password
        return f"{url.partition(':')[0]}://..."
    host = (parts.host or "").rpartition("@")[2]  # of a password with an @
    return f"{parts.drivername}://{host}{f':{parts.port}' if parts.port else ''}/{parts.database or ''}"


@contextmanager
def answering(url: str) -> Generator[None]:
    """What the database of ``url`` refuses in the block is told in one line."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as err:
        raise KvtunerError(
            f"--storage {shown(url)}: {_reason(err, url)}; see that it runs and lets this user write, then give the "
            "same command again"
        ) from None  # what it comes from may show the password


class _Journal(JournalFileBackend):
    """A journal whose disk may fail while workers are at it."""

    def __init__(self, path: Path, lock: JournalFileOpenLock) -> None:
        super().__init__(str(path), lock)
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._telling():
            super().append_logs(logs)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        with self._telling():
            yield from super().read_logs(log_number_from)

    @contextmanager
    def _telling(self) -> Generator[None]:
        try:
            yield
        except OSError as err:
            raise KvtunerError(
                f"--storage {self.path}: {err.strerror}; see that its disk is there, has room and lets this user "
                "write, then give the same command again"
            ) from err


def _journal(path: Path) -> JournalStorage:
    lock = JournalFileOpenLock(str(path))
    try:
        lock.acquire()
        try:
            path.open("ab").close()
        finally:
            lock.release()
        return JournalStorage(_Journal(path, lock))
    except OSError as err:
        raise KvtunerError(f"cannot write {path}: {err.strerror}; choose another path with --storage") from err
    except (ValueError, KeyError, TypeError) as err:
        raise KvtunerError(f"{path} is no journal of Optuna: choose another path with --storage") from err


def _database(url: str) -> RDBStorage:
    with answering(url):
        try:
            return _connected(url)
        except ImportError as err:
            raise KvtunerError(f"--storage {shown(url)}: {_missing(err)}") from None
        except (ArgumentError, KeyError, IndexError, ValueError):
            raise KvtunerError(
                f"--storage {shown(url)}: no URL of a database: write KIND://USER:PASSWORD@HOST/DATABASE, or "
                "sqlite:///PATH"
            ) from None


def _connected(url: str) -> RDBStorage:
    end = time.monotonic() + CONNECTING
    while True:
        try:
            return _connect(url)
        except (SQLAlchemyError, StorageInternalError) as err:
            if isinstance(err, ArgumentError) or time.monotonic() > end:
                raise
            time.sleep(PAUSE)


def _connect(url: str) -> RDBStorage:
    waits = {"connect_args": {"timeout": SQLITE_WAIT}} if url.startswith("sqlite") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(
            url,
            engine_kwargs=waits,
            heartbeat_interval=HEARTBEAT,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(RETRIES),
        )


def _missing(err: ImportError) -> str:
    """What to do about a driver that is not installed."""
    name = getattr(err.__cause__ or err, "name", None) or "its driver"
    return f"{name} is not installed: pip install {PACKAGES.get(name, name)}, or name another driver, KIND+DRIVER://..."


def _reason(err: Exception, url: str) -> str:
    """The first line of what the database says, without the password."""
    cause = err.__cause__ or err
    line = next(iter(str(getattr(cause, "orig", None) or cause).splitlines()), type(cause).__name__)
    password = make_url(url).password
    return line.replace(str(password), "***") if password else line
