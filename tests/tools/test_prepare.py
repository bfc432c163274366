"""The life of a patch on a source package made here: prepare, change, export, prepare again, rebase."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tools.made_up import FILES, Project, patched_project, write_sdist


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return patched_project(tmp_path / "project")


def test_export_sorts_patches_by_what_they_change(project: Project) -> None:
    assert (project.root / "patches" / "series").read_text().split() == [
        "llama.cpp/0001-a-ten.patch",
        "bindings/0001-x-ten.patch",
    ]
    assert project.tool("check").returncode == 0


def test_check_finds_a_patch_that_was_edited(project: Project) -> None:
    patch = project.root / "patches" / "bindings" / "0001-x-ten.patch"
    patch.write_text(patch.read_text().replace("+x = 10", "+x = 11"))
    done = project.tool("check")
    assert done.returncode != 0
    assert "0001-x-ten.patch differs" in done.stderr


def test_a_fresh_tree_gets_the_series_and_then_nothing(project: Project) -> None:
    shutil.rmtree(project.tree)
    assert "2 patches" in project.prepare()
    assert "return 10" in (project.tree / "vendor/llama.cpp/src/a.cpp").read_text()
    assert (project.tree / "llama_cpp/x.py").read_text() == "x = 10\n"
    assert "up to date" in project.prepare()


def test_files_without_a_change_keep_their_time_stamps(project: Project) -> None:
    untouched = project.tree / "vendor/llama.cpp/src/b.cpp"
    before = untouched.stat().st_mtime_ns
    (project.root / "patches" / "series").write_text("llama.cpp/0001-a-ten.patch\n")
    project.prepare()
    assert (project.tree / "llama_cpp/x.py").read_text() == "x = 1\n"
    assert untouched.stat().st_mtime_ns == before


def test_changes_that_are_not_committed_are_not_lost(project: Project) -> None:
    (project.root / "patches" / "series").write_text("")
    path = project.tree / "llama_cpp/x.py"
    path.write_text("x = 99\n")
    done = project.tool("prepare", "--sdist", project.sdist)
    assert done.returncode != 0
    assert "not committed" in done.stderr
    assert path.read_text() == "x = 99\n"


def test_the_series_moves_to_another_source(project: Project) -> None:
    newer = dict(FILES)
    newer["vendor/llama.cpp/src/a.cpp"] = "// newer\n" + FILES["vendor/llama.cpp/src/a.cpp"]
    newer["vendor/llama.cpp/src/c.cpp"] = "int c;\n"
    del newer["vendor/llama.cpp/src/b.cpp"]
    done = project.tool("rebase", "--sdist", write_sdist(project.root / "pkg-2.0.tar.gz", newer))
    assert done.returncode == 0, done.stderr
    text = (project.tree / "vendor/llama.cpp/src/a.cpp").read_text()
    assert text.startswith("// newer")
    assert "return 10" in text
    assert (project.tree / "vendor/llama.cpp/src/c.cpp").exists()
    assert not (project.tree / "vendor/llama.cpp/src/b.cpp").exists()
    assert project.tool("export").returncode == 0
    assert "a: ten" in (project.root / "patches" / "llama.cpp" / "0001-a-ten.patch").read_text()
