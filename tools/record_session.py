#!/usr/bin/env python
"""A new user's session of ten commands in a terminal: prints it, and what is wrong with it.

    tools/record_session.py MODEL.gguf [--columns 80] [--silence 10] [-- OPTIONS OF tune, SUCH AS --text FILE]

Nothing may be cut, no command may be silent for longer than so many seconds, and each must end as it is expected to:
two make a mistake, and have to be told what to do about it. Ends with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pseudoterminal import Session, run_in_terminal

PROGRAM = "kvtuner-gguf"
RUN = [sys.executable, "-c", f"from kvtuner_gguf.cli import main; main(prog_name={PROGRAM!r})"]
# what a line that lacks its end has
CUT = "…"
NEXT = "next: "


@dataclass(frozen=True)
class Step:
    """``words`` follow the program's name; ``fails``: whether they are a mistake."""

    words: tuple[str, ...]
    fails: bool = False


def steps(model: Path, text: Sequence[str]) -> list[Step]:
    """The session, without the command that `tune` names to go on with; ``text`` are options of `tune`."""
    return [
        Step(("--help",)),
        Step(("inspect", str(model))),
        Step(("tune", str(model), "--bits", "1", *text), fails=True),
        Step(("tune", str(model), "--bits", "4", "-o", "cfg.json", *text)),
        Step(()),
        Step(("inspect", annotated(model))),
        Step(("verify", annotated(model))),
        Step(("eval", annotated(model), "--uniform", "q8_0", "--uniform", "q4_0", "--chunks", "1")),
        Step(("strip", annotated(model), "-o", "plain.gguf")),
        Step(("inspect", "missing.gguf"), fails=True),
    ]


def annotated(model: Path) -> str:
    """As `tune` names the file with the plan."""
    return f"{model.stem}-kv{model.suffix}"


def faults(step: Step, session: Session, silence: float) -> list[str]:
    """What is wrong with a command, in words."""
    found = []
    if bool(session.exit_code) is not step.fails:
        found.append(f"it ended with {session.exit_code}")
    if CUT in session.raw:
        found.append("something is cut")
    if session.longest_silence > silence:
        found.append(f"it was silent for {session.longest_silence:.1f} s")
    if "Traceback" in session.raw:
        found.append("it shows a traceback")
    return found


def hint_of(words: Sequence[str], folder: Path) -> str | None:
    """What to do about the mistake, as --json tells it."""
    done = subprocess.run([*RUN, *words, "--json"], cwd=folder, capture_output=True, text=True, check=False)
    return json.loads(done.stdout).get("hint")


def named_next(session: Session) -> tuple[str, ...]:
    """The words of the command that the session names to go on with; empty where it names none."""
    text = session.raw.replace("\r\n", "\n")
    commands = [line.removeprefix(NEXT) for line in text.splitlines() if line.startswith(NEXT)]
    return tuple(shlex.split(commands[-1])[1:]) if commands else ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--silence", type=float, default=10.0, help="Seconds.")
    parser.add_argument("options", nargs="*", help="Options of tune.")
    args = parser.parse_args()
    n_faults, following = 0, ()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, step in enumerate(steps(args.model.resolve(), args.options), start=1):
            words = step.words or following
            print(f"\n[{number}] $ {shlex.join([PROGRAM, *words])}", flush=True)
            session = run_in_terminal([*RUN, *words], args.columns, dict(os.environ), folder)
            print("\n".join(session.lines))
            following = named_next(session)
            wrong = faults(step, session, args.silence)
            if step.fails and not hint_of(words, folder):
                wrong.append("nothing is said of what to do")
            n_faults += len(wrong)
            said = "; ".join(wrong) or "good"
            silent = f"longest silence {session.longest_silence:.1f} s"
            print(f"    ({session.seconds:.1f} s, {silent}, status {session.exit_code}: {said})", flush=True)
    print(f"\n{n_faults} faults")
    return bool(n_faults)


if __name__ == "__main__":
    sys.exit(main())
