"""Replace files whole: a kill at any moment leaves either the old file or the new one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kvtuner_gguf.errors import KvtunerError


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A binary file beside ``target`` that takes its place once the block ends without an error.

    The new file is synced before the rename and keeps the permissions of an old target.
    Raises `KvtunerError` where the folder or the disk does not let it be written.
    """
    target = Path(os.path.realpath(target))
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError("the file is read-only")
        fd, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as err:
        raise KvtunerError(f"cannot write {target}: {err.strerror or err}; choose another target with -o") from err
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_umask())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as err:
        raise KvtunerError(
            f"cannot write {target}: {err.strerror or err}; free some room or choose another disk"
        ) from err
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(target: Path, text: str) -> None:
    """Replace ``target`` by a UTF-8 text file."""
    with replacing(target) as file:
        file.write(text.encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems refuse to open a folder
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
