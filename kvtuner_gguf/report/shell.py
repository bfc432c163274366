"""Commands as a shell takes them: what to type next, and what makes a report again."""

from __future__ import annotations

import shlex
from pathlib import Path

PROGRAM = "kvtuner-gguf"


def shell_command(*words: object) -> str:
    return shlex.join(map(str, words))


def next_command(*words: object) -> str:
    """A command of ours."""
    return shell_command(PROGRAM, *words)


def annotating(model: Path, plan: Path) -> str:
    """The command that writes ``plan`` into what is `annotated`."""
    target = annotated(model)
    where = ("--in-place",) if target == model else ("-o", target)
    return next_command("annotate", model, plan, *where)


def annotated(model: Path) -> Path:
    """A copy of ``model`` in the folder of the shell; itself where it is one of several shards."""
    from kvtuner_gguf.gguffile.shards import shard_paths

    return model if len(shard_paths(model)) > 1 else Path(f"{model.stem}-kv{model.suffix}")


def serving(model: Path) -> str:
    return shell_command("llama-server", "-m", model)
