"""Two packages' llama.cpp side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.made_up import LLAMA, Project, below, write_package, write_sdist


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def write_one(project: Project, **changes: str) -> Path:
    files = below("llama.cpp", {**LLAMA, **changes})
    return write_sdist(project.root / "one-1.0.tar.gz", files)


def test_equal_files_and_files_of_one_alone(project: Project) -> None:
    one = write_one(project, **{"docs/more.md": "more\n"})
    done = project.tool("compare", one, project.sdist)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "5 files are equal\n0 files differ\n1 files are in the first alone\n  docs/more.md\n"
        "0 files are in the second alone\n"
    )


def test_a_file_that_differs_fails(project: Project) -> None:
    done = project.tool("compare", write_one(project, **{"src/b.cpp": "int b;\n"}), project.sdist)
    assert done.returncode == 1
    assert "1 files differ\n  src/b.cpp\n" in done.stdout


def test_long_lists_are_cut(project: Project) -> None:
    done = project.tool("compare", write_one(project, **{f"docs/{i}.md": "" for i in range(30)}), project.sdist)
    assert "30 files are in the first alone" in done.stdout
    assert "  and 10 more" in done.stdout


def test_packages_are_fetched_and_folders_are_taken(project: Project, tmp_path: Path) -> None:
    write_package(project.index, "one", "1.0", below("llama.cpp", LLAMA))
    for name, text in LLAMA.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_text(text)
    done = project.tool("compare", "one==1.0", tmp_path / "folder")
    assert done.returncode == 0, done.stderr
    assert "5 files are equal" in done.stdout


def test_what_is_neither_is_refused(project: Project) -> None:
    assert "one is no file, nor PACKAGE==VERSION" in project.tool("compare", "one", project.sdist).stderr
