from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kvtuner_gguf.files.copying import BLOCK_BYTES, CHUNK_BYTES, copy_range

RAW = os.urandom(CHUNK_BYTES + 3 * BLOCK_BYTES + 5)
Calls = list[tuple[int, int, int]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(RAW)
    return path


def copied(source: Path, start: int, end: int, front: bytes) -> bytes:
    target = source.with_name("target")
    with source.open("rb") as old, target.open("wb") as new:
        new.write(front)
        copy_range(old, start, end, new)
        new.write(b"end")
    return target.read_bytes()


def refused(*_: object) -> int:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.parametrize("how", ["by the system", "refused", "nothing", "a part", "not there"])
@pytest.mark.parametrize("start", [0, 7, BLOCK_BYTES, len(RAW)])
def test_every_byte_is_copied(start: int, how: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = getattr(os, "copy_file_range", refused)
    if how == "refused":
        monkeypatch.setattr(os, "copy_file_range", refused, raising=False)
    elif how == "nothing":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)
    elif how == "a part":
        some = lambda a, b, n, *at: whole(a, b, min(n, 1 << 20), *at)  # noqa: E731
        monkeypatch.setattr(os, "copy_file_range", some, raising=False)
    elif how == "not there":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    for end in (len(RAW), max(start, len(RAW) - 9)):
        assert copied(source, start, end, b"front") == b"front" + RAW[start:end] + b"end"


def test_blocks_that_can_be_shared_are_copied_as_blocks(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Calls = []

    def noted(_: int, __: int, n_bytes: int, start: int, to: int) -> int:
        calls.append((start, to, n_bytes))
        return 0

    monkeypatch.setattr(os, "copy_file_range", noted, raising=False)
    copied(source, 100, len(RAW), bytes(BLOCK_BYTES + 100))
    assert calls[0] == (100, BLOCK_BYTES + 100, BLOCK_BYTES - 100)
    assert len(calls) == 3
    assert all(start % BLOCK_BYTES == to % BLOCK_BYTES == 0 for start, to, _ in calls[1:])
    assert [n_bytes for _, _, n_bytes in calls[1:]] == [CHUNK_BYTES, len(RAW) - CHUNK_BYTES - BLOCK_BYTES]


def test_progress_ends_with_all_bytes(source: Path) -> None:
    seen: list[tuple[int, int]] = []
    with source.open("rb") as old, source.with_name("target").open("wb") as new:
        copy_range(old, 5, len(RAW), new, lambda *step: seen.append(step))
    assert seen[-1] == (len(RAW) - 5, len(RAW) - 5)
    assert len(seen) == 2


def test_a_source_that_became_shorter_is_an_error(source: Path) -> None:
    with (
        source.open("rb") as old,
        source.with_name("target").open("wb") as new,
        pytest.raises(OSError, match="ended at"),
    ):
        copy_range(old, 0, len(RAW) + 1, new)
