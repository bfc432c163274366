"""No program leaves its sandbox, and none passes but by the check."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import sandbox
from sandbox import CRASHED, FAILED, PASSED, PYTHON, TIMEOUT, Limits, Outcome, judge

CHECK = "def check(candidate):\n    assert candidate(1) == 2\n"
GOOD = "def f(x):\n    return x + 1\n"
SHORT = Limits(cpu_seconds=1, wall_seconds=2)


def outcome(program: str, limits: Limits | None = None) -> Outcome:
    return judge(program, CHECK, "f", limits)


def test_a_right_program_passes_and_a_wrong_one_fails() -> None:
    assert outcome(GOOD) == Outcome(PASSED)
    assert outcome("def f(x):\n    return x\n") == Outcome(FAILED, "AssertionError: ")
    assert outcome("def f(x)\n").reason.startswith("SyntaxError")
    assert outcome("def g(x):\n    return x + 1\n") == Outcome(FAILED, "KeyError: 'f'")


def test_what_the_library_has_can_be_used() -> None:
    program = "import dataclasses, decimal, functools, heapq, random, re, statistics, typing\n"
    program += "@dataclasses.dataclass\nclass A:\n    x: 'int'\n" + GOOD
    assert outcome(program) == Outcome(PASSED)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import sys\nsys.exit(0)", Outcome(FAILED, "SystemExit: 0")),
        ("import os\nos._exit(0)", Outcome(CRASHED, "exit status 0 before the check's end")),
        ("import os, signal\nsignal.raise_signal(signal.SIGSEGV)", Outcome(CRASHED, "signal 11")),
        ("raise KeyboardInterrupt", Outcome(FAILED, "KeyboardInterrupt: ")),
    ],
)
def test_an_end_before_the_check_is_no_pass(program: str, expected: Outcome) -> None:
    assert outcome(program + "\n" + GOOD) == expected


def test_a_report_without_the_token_is_no_pass() -> None:
    forged = '{"token": "", "status": "passed", "reason": ""}'
    writes = f"import os\nfor fd in range(32):\n    try:\n        os.write(fd, b'{forged}')\n    except OSError:\n"
    assert outcome(writes + "        pass\nos._exit(0)\n").status == CRASHED


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(x):\n    while True:\n        pass\n", "processor time"),
        (
            "while True:\n    try:\n        print('x' * 100)\n    except BaseException:\n        pass\n",
            "processor time",
        ),
        ("import time\ntime.sleep(60)\n", "wall clock time"),
        ("input = open(0).read\ninput()\nimport time\ntime.sleep(60)\n", "wall clock time"),
    ],
)
def test_an_endless_loop_is_ended(program: str, reason: str) -> None:
    start = time.monotonic()
    assert outcome(program, SHORT) == Outcome(TIMEOUT, reason)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "start",
    ["os.fork()", "os.system('true')", "subprocess.run(['true'])", "os.execv('/bin/true', ['true'])", "os.kill(1, 0)"],
)
def test_starting_and_signalling_processes_is_no_pass_even_if_refused(start: str) -> None:
    program = f"import os, subprocess\ntry:\n    {start}\nexcept BaseException:\n    pass\n{GOOD}"
    assert outcome(program).reason.startswith("forbidden: ")


def test_a_fork_bomb_past_the_audit_is_limited_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    child = sandbox.CHILD.read_text().replace("guard(reporter, os.path.realpath(os.getcwd()))", "pass")
    monkeypatch.setattr(sandbox, "_child_source", lambda: child)
    bomb = "import os\nwhile True:\n    os.fork()\n"
    assert outcome(bomb, SHORT) == Outcome(FAILED, "BlockingIOError: [Errno 11] Resource temporarily unavailable")
    assert outcome(f"import threading\nthreading.Thread(target=print).start()\n{GOOD}").status == FAILED


def test_a_machine_that_cannot_hold_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_holds", lambda prefix: False)
    sandbox._prefix.cache_clear()
    with pytest.raises(sandbox.KvtunerError, match="run as an ordinary user"):
        sandbox.ensure_held()
    sandbox._prefix.cache_clear()


def test_the_probe_tells_a_prefix_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not sandbox._holds(("/no/such/program",))
    assert sandbox._holds(sandbox._prefix())
    monkeypatch.setattr(sandbox, "PYTHON", (*PYTHON[:-1], "-c", "print('another')", "-c"))
    assert not sandbox._holds(sandbox._prefix())


@pytest.mark.parametrize("hog", ["a.append(bytes(10**7))", "a.append(list(range(10**6)))", "a *= 2"])
def test_a_memory_hog_is_limited(hog: str) -> None:
    start = time.monotonic()
    program = f"a = [0]\nwhile True:\n    {hog}\n"
    assert outcome(program, Limits(memory_bytes=256 << 20)).status in (FAILED, CRASHED)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "change",
    [
        "open(path, 'w')",
        "open(path, 'a')",
        "os.open(path, os.O_RDWR)",
        "os.remove(path)",
        "os.rename(path, 'mine')",
        "os.rename('own', path)",
        "os.truncate(path, 0)",
        "os.chmod(path, 0)",
        "os.mkdir(path + 'x')",
        "os.symlink('own', path + 'x')",
        "pathlib.Path(path).write_text('x')",
        "os.symlink(os.path.dirname(path), 'link'); open('link/file', 'w')",
    ],
)
def test_changing_files_outside_is_no_pass_even_if_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("kept")
    path.chmod(0o666)
    program = f"import os, pathlib\npath = {str(path)!r}\nopen('own', 'w').close()\n"
    program += f"try:\n    {change}\nexcept OSError:\n    pass\n{GOOD}"
    assert outcome(program).reason.startswith("forbidden: ")
    assert path.read_text() == "kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_files_of_its_own_are_small_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    assert (
        outcome("assert open('a', 'w').write('x')\nimport os\nassert os.listdir() == ['a']\n" + GOOD).status == PASSED
    )
    assert "File too large" in outcome("open('a', 'wb').write(bytes(1 << 24))\n" + GOOD).reason
    assert "Too many open files" in outcome("files = [open('/dev/null') for _ in range(100)]\n" + GOOD).reason
    assert not list(tmp_path.iterdir())


def test_no_network() -> None:
    program = (
        f"import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError:\n    pass\n{GOOD}"
    )
    assert outcome(program).reason.startswith("forbidden: socket.")


def test_environment_input_and_hash_seed() -> None:
    program = "import os, sys\nassert set(os.environ) <= {'PYTHONHASHSEED', 'LC_CTYPE'}, set(os.environ)\n"
    program += "assert sys.stdin.read() == '' and '' not in sys.path\n"
    program += "assert 'site' not in sys.modules and __name__ != '__main__'\n"
    assert outcome(program + GOOD) == Outcome(PASSED)
    hashes = {outcome(f"raise ValueError(hash('a'))\n{GOOD}").reason for _ in range(3)}
    assert len(hashes) == 1
