"""What may be replaced by a file, and what may not."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile

NO_FILES = ("device", "fifo", "socket", "folder")


def make_special(kind: str, folder: Path) -> Path:
    path = folder / kind
    if kind == "device":
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
        except PermissionError:
            return Path(os.devnull)  # which a user other than root cannot replace anyway
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        path.mkdir()
    return path


@pytest.fixture(params=NO_FILES)
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = make_special(request.param, tmp_path)
    before = path.lstat()
    yield path
    after = path.lstat()
    assert (after.st_ino, stat.S_IFMT(after.st_mode)) == (before.st_ino, stat.S_IFMT(before.st_mode))


@pytest.mark.parametrize("through_link", [False, True])
def test_what_is_no_plain_file_is_refused_and_stays(special: Path, through_link: bool, tmp_path: Path) -> None:
    target = special
    if through_link:
        target = tmp_path / "link"
        target.symlink_to(special.name)
    for write in (atomicfile.check_target, lambda path: atomicfile.write_text(path, "new")):
        with pytest.raises(KvtunerError, match="only plain files are replaced; choose another target"):
            write(target)


def test_links_stay_and_their_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    real, link, dangling = tmp_path / "far" / "real", tmp_path / "link", tmp_path / "dangling"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to("far/real")
    dangling.symlink_to("far/new")
    for target in (link, dangling):
        atomicfile.check_target(target)
        atomicfile.write_text(target, "new")
        assert target.is_symlink()
    assert real.read_text() == (tmp_path / "far" / "new").read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("no/folder")
    for name, words in (("loop", "symbolic links"), ("lost", "there is no folder .*/no; make it")):
        with pytest.raises(KvtunerError, match=words):
            atomicfile.check_target(tmp_path / name)
        assert (tmp_path / name).is_symlink()


def test_the_check_leaves_nothing_and_changes_nothing(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("old")
    before = old.stat()
    atomicfile.check_target(old)
    atomicfile.check_target(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    after = old.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/out", "there is no folder .*no/such; make it"),
        ("file/out", "Not a directory"),
        ("x" * 300, "(?i)name.* too long"),
        ("-", "not written to the standard output"),
    ],
)
def test_names_that_cannot_be_written(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KvtunerError, match=words):
        atomicfile.check_target(Path(name))


def test_a_name_as_long_as_names_can_be_is_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "\u00e4" * 127):
        atomicfile.write_text(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no such name here")
@pytest.mark.parametrize("into_file", [False, True])
def test_what_the_command_prints_to_is_refused(into_file: bool, tmp_path: Path) -> None:
    code = "from pathlib import Path; from kvtuner_gguf.files import atomicfile as a; a.check_target(Path('%s'))"
    printed = (tmp_path / "printed").open("wb") if into_file else subprocess.PIPE
    done = subprocess.run([sys.executable, "-c", code % "/dev/stdout"], stdout=printed, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert (b"this command prints to it" if into_file else b"it is a pipe") in done.stderr


@pytest.fixture
def of_nobody() -> Iterator[Path]:
    """A folder and a file of a user whom permissions bind, unlike root: those of nobody where root runs the tests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "folder"
        folder.mkdir()
        (folder / "file").write_text("old")
        if os.getuid() == 0:
            Path(name).chmod(0o755)
            for path in (folder, folder / "file"):
                os.chown(path, NOBODY, NOBODY)
        yield folder
        folder.chmod(0o755)


NOBODY = 65534
CHECK_AS_NOBODY = f"""
import os, sys
from pathlib import Path
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.errors import KvtunerError
if os.getuid() == 0:
    os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
try:
    atomicfile.check_target(Path(sys.argv[1]))
    print("can be replaced")
except KvtunerError as err:
    print(err)
"""


@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "words"),
    [(0o644, 0o755, "can be replaced"), (0o444, 0o755, "Permission denied"), (0o644, 0o555, "Permission denied")],
)
def test_what_is_read_only_is_refused(file_mode: int, folder_mode: int, words: str, of_nobody: Path) -> None:
    target = of_nobody / "file"
    target.chmod(file_mode)
    of_nobody.chmod(folder_mode)
    command = [sys.executable, "-c", CHECK_AS_NOBODY, str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert words in done.stdout, done.stderr
    assert target.read_text() == "old"
