"""The tools that stand in front of those of the build for REFRACT."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "tools" / "refract"
TOOLS = ("llama-cli", "llama-completion", "llama-perplexity")
TYPES = ["-ctk", "f16", "-ctv", "f16"]


def passed_on(tool: str, given: list[str], folder: Path) -> list[str]:
    """The words that the tool of the build gets."""
    inner = folder / tool
    inner.write_text('#!/bin/sh\nprintf "%s\\0" "$0" "$@"\n')
    inner.chmod(0o755)
    environment = {**os.environ, "KVTUNER_BIN": str(folder)}
    done = subprocess.run([FOLDER / tool, *given], env=environment, capture_output=True, text=True, check=True)
    name, *words = done.stdout.split("\0")[:-1]
    assert name == str(inner)
    return words


@pytest.mark.parametrize("tool", TOOLS)
def test_a_plan_goes_before_the_types(tool: str, tmp_path: Path) -> None:
    given = ["-m", "a model.gguf", *TYPES, "--kv-config", "plan.json", "-p", ""]
    assert passed_on(tool, given, tmp_path) == ["-m", "a model.gguf", "--kv-config", "plan.json", "-p", ""]


@pytest.mark.parametrize("tool", TOOLS)
def test_without_a_plan_all_is_passed_on(tool: str, tmp_path: Path) -> None:
    given = ["-m", "model.gguf", *TYPES, "-p", "two\nlines"]
    assert passed_on(tool, given, tmp_path) == given
