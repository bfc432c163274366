"""Replace files whole: a kill at any moment leaves either the old file or the new one.

A symbolic link stays, what it points to is replaced. What is no plain file is never replaced.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kvtuner_gguf.errors import KvtunerError

_END = ".kvtuner.tmp"
# characters of the target's name in that of a temporary file, which may be no longer than a name can be
_SHOWN = 32
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def replacing(target: Path) -> Generator[BinaryIO]:
    """A binary file beside ``target`` that takes its place once the block ends without an error.

    The new file is synced before the rename and keeps the permissions of an old target.
    Raises `KvtunerError` where ``target`` is no plain file, or the folder or the disk does not let it be written.
    """
    with _refusing(target):
        _check_kind(target)
        target = Path(os.path.realpath(target))
        _check_old(target)
        fd, name = _temporary(target)
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


def check_target(target: Path) -> None:
    """Raise `KvtunerError` where `replacing` would refuse ``target``: for a caller with long work before it writes."""
    with _refusing(target):
        _check_kind(target)
        real = Path(os.path.realpath(target))
        _check_old(real)
        fd, name = _temporary(real)
        os.close(fd)
        os.unlink(name)


def is_temporary(path: Path) -> bool:
    """Whether ``path`` is what a kill in the middle of `replacing` leaves behind."""
    return path.name.endswith(_END)


@contextmanager
def _refusing(target: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as err:
        folder = Path(os.path.realpath(target)).parent
        why = (
            f"no file can be made in {folder}; choose"
            if folder.is_dir()
            else f"there is no folder {folder}; make it, or choose"
        )
        raise KvtunerError(f"cannot write {target}: {why} another target") from err
    except OSError as err:
        raise KvtunerError(f"cannot write {target}: {err.strerror or err}; choose another target") from err


def _check_kind(target: Path) -> None:
    """Raise `OSError` for what is there and is no plain file, or is where this process prints to."""
    if str(target) == "-":
        raise OSError("files are replaced whole, not written to the standard output")
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no plain file")
        raise OSError(f"it is {kind}, and only plain files are replaced")
    if any(_is_open_as(fd, found) for fd in (1, 2)):
        raise OSError("this command prints to it")


def _is_open_as(fd: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(file, os.fstat(fd))
    except OSError:  # closed
        return False


def _check_old(target: Path) -> None:
    if target.exists():
        if os.path.ismount(target):
            raise OSError("it is a mount point, which cannot be replaced")
        with target.open("r+b"):  # also what the superuser may not write
            pass


def _temporary(target: Path) -> tuple[int, str]:
    if len(os.fsencode(target.name)) > os.pathconf(target.parent, "PC_NAME_MAX"):
        raise OSError("its name is too long")
    return tempfile.mkstemp(prefix=f".{target.name[:_SHOWN]}.", suffix=_END, dir=target.parent)


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
