"""Copy a part of a file into another, where the file system can without moving a byte: both then share its blocks."""

from __future__ import annotations

import os
from typing import BinaryIO

from kvtuner_gguf.progress import Progress

# shared blocks begin at multiples of this in both files. Source: the defaults of btrfs and XFS
BLOCK_BYTES = 4096
CHUNK_BYTES = 8 << 20


def copy_range(source: BinaryIO, start: int, end: int, target: BinaryIO, progress: Progress | None = None) -> None:
    """Append the bytes from ``start`` to ``end`` of ``source`` to ``target``.

    ``progress`` hears of bytes. File systems that share blocks between files (btrfs, XFS) do so where ``start`` and the
    place in ``target`` are equally far from a block's start; elsewhere, and on others, the bytes are copied. Raises
    `OSError`, also where ``source`` is shorter than it was said to be.
    """
    target.flush()
    to = target.tell()
    position = min(end, start + -start % BLOCK_BYTES)
    _copy(source, start, position, target, to)
    while position < end:
        n = min(CHUNK_BYTES, end - position)
        _copy(source, position, position + n, target, to + position - start)
        position += n
        if progress:
            progress(position - start, end - start)
    target.seek(to + end - start)


def _copy(source: BinaryIO, start: int, end: int, target: BinaryIO, to: int) -> None:
    while start < end:
        n = _shared(source.fileno(), start, end - start, target.fileno(), to)
        n = n or os.pwrite(target.fileno(), os.pread(source.fileno(), end - start, start), to)
        if n == 0:
            raise OSError(f"the source ended at byte {start} while it was copied")
        start, to = start + n, to + n


def _shared(source: int, start: int, n_bytes: int, target: int, to: int) -> int:
    """Bytes that the system copied by itself, sharing blocks where it can; 0 where it does not."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, n_bytes, start, to)
    except OSError:  # between these files it cannot; where the disk is full, writing says so, too
        return 0
