"""The series, the files and the index agree, and export reproduces the files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "patches"
SERIES = (PATCHES / "series").read_text().split()


def test_the_series_names_every_patch_once() -> None:
    files = {str(path.relative_to(PATCHES)) for path in PATCHES.glob("*/*.patch")}
    assert len(SERIES) == len(set(SERIES))
    assert set(SERIES) == files


def test_the_index_gives_each_patch_a_purpose_in_order() -> None:
    rows = re.findall(r"^\| (\S+\.patch) \| ([^|]+) \| ([^|]+) \|$", (PATCHES / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _, _ in rows] == SERIES
    assert all(len(purpose) > 20 and len(end) > 10 for _, purpose, end in rows)


def test_the_index_counts_the_lines() -> None:
    text = "".join((PATCHES / name).read_text() for name in SERIES)
    added, removed = (len(re.findall(rf"^\{sign}(?!\{sign * 2} )", text, re.MULTILINE)) for sign in "+-")
    assert f"adds {added} lines to upstream's files and removes {removed}." in (PATCHES / "README.md").read_text()


@pytest.mark.parametrize("name", SERIES)
def test_a_patch_says_why_and_until_when(name: str) -> None:
    text = (PATCHES / name).read_text()
    message = text.partition("\ndiff --git")[0]
    assert text.startswith(f"From {'0' * 40} ")
    assert re.search(r"Needed until|defect of the base", message)
    assert re.search(r"^index [0-9a-f]{40}\.\.[0-9a-f]{40}", text, re.MULTILINE)


@pytest.mark.parametrize("name", SERIES)
def test_a_patch_stays_in_its_part(name: str) -> None:
    paths = re.findall(r"^diff --git a/(\S+) ", (PATCHES / name).read_text(), re.MULTILINE)
    prefix = {"llama.cpp": "vendor/llama.cpp/", "bindings": ("llama_cpp/", "docs/")}[name.split("/")[0]]
    assert paths
    assert all(path.startswith(prefix) for path in paths)


@pytest.mark.native
def test_export_reproduces_the_files() -> None:
    command = [sys.executable, str(ROOT / "tools" / "llama_patches.py"), "check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


def test_a_wrong_sdist_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "llama_cpp_python-0.3.36.tar.gz"
    wrong.write_bytes(b"not the sdist")
    tree = tmp_path / "src"
    command = [sys.executable, str(ROOT / "tools" / "llama_patches.py"), "--tree", str(tree), "prepare"]
    done = subprocess.run([*command, "--sdist", str(wrong)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "is not the pinned" in done.stderr
    assert not tree.exists()
