"""What the recipes of containers build is what the Makefile knows."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from build_folders import ROOT, build_folder

RECIPES = sorted((ROOT / "docs" / "docker").glob("*.Dockerfile"))


def backend(recipe: Path) -> str:
    return recipe.name.partition(".")[0]


def test_there_is_one_for_each_kind() -> None:
    assert [backend(recipe) for recipe in RECIPES] == ["cpu", "cuda"]


@pytest.mark.parametrize("recipe", RECIPES, ids=backend)
def test_make_knows_the_target(recipe: Path) -> None:
    (command,) = re.findall(r"^RUN (make .*)$", recipe.read_text(), re.MULTILINE)
    done = subprocess.run(
        [*shlex.split(command), "--dry-run", "--always-make"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"tools/build_native.py --backend {backend(recipe)} --cpu all" in done.stdout


@pytest.mark.parametrize("recipe", RECIPES, ids=backend)
def test_the_folder_that_is_copied_is_that_of_the_build(recipe: Path) -> None:
    (copied,) = re.findall(r"^COPY --from=build /kvtuner/(\S+) ", recipe.read_text(), re.MULTILINE)
    assert copied == (build_folder(backend(recipe), "all") / "bin").relative_to(ROOT).as_posix()
