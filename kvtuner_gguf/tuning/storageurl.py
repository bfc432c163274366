"""What --storage names: a journal by its path, or a database by a URL. Nothing is opened here, no package needed."""

from __future__ import annotations

from pathlib import Path

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile

DATABASES = ("sqlite", "postgresql", "mysql")


def check_storage(url: str) -> None:
    """Raise `KvtunerError` for a ``url`` of another kind, or a journal that cannot be written; it shows no password."""
    path = journal_path(url)
    if path is not None:
        atomicfile.check_target(path)
    elif _kind(url.partition("://")[0]) not in DATABASES:
        raise KvtunerError(
            f"--storage {url.partition(':')[0]}://...: unknown kind: give the path of a journal, or a URL of "
            f"{', '.join(DATABASES[:-1])} or {DATABASES[-1]}"
        )


def journal_path(url: str) -> Path | None:
    """The file that ``url`` names, if it is one of a journal."""
    start, separator, rest = url.partition("://")
    if (separator and start != "journal") or _kind(url.partition(":")[0]) in (*DATABASES, "postgres"):
        return None  # without // it is no path either: it may hold a password
    return Path(rest if separator else url)


def _kind(scheme: str) -> str:
    """``scheme`` without a driver."""
    return scheme.partition("+")[0]
