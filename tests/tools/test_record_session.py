"""What the recorder of a session calls wrong."""

from __future__ import annotations

import sys

import pytest
from pseudoterminal import Session, run_in_terminal
from record_session import Step, faults, named_next


def session(text: str = "a line\r\n", exit_code: int = 0, at: float = 0.5) -> Session:
    return Session(80, ((at, text),), exit_code, 1.0)


@pytest.mark.parametrize(
    ("made", "fails", "found"),
    [
        (session(), False, []),
        (session(exit_code=2), True, []),
        (session(exit_code=2), False, ["it ended with 2"]),
        (session(), True, ["it ended with 0"]),
        (session("0.0…"), False, ["something is cut"]),
        (session("Traceback (most recent call last):\r\n"), False, ["it shows a traceback"]),
        (session(at=0.95), False, ["it was silent for 0.9 s"]),
    ],
)
def test_faults(made: Session, fails: bool, found: list[str]) -> None:
    assert faults(Step((), fails), made, silence=0.8) == found


def test_the_command_to_go_on_with_is_found() -> None:
    assert named_next(session("next: kvtuner-gguf annotate 'a b' c\r\n1 s in all\r\n")) == ("annotate", "a b", "c")
    assert named_next(session()) == ()


def test_a_terminal_is_as_wide_as_it_is_asked_to_be() -> None:
    script = "import os, time; print(os.get_terminal_size().columns, flush=True); time.sleep(0.5); print('x' * 50)"
    found = run_in_terminal([sys.executable, "-c", script], 40)
    assert found.lines == ["40", "x" * 40, "x" * 10]
    assert 0.4 < found.longest_silence < found.seconds
