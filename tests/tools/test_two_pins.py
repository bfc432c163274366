"""Preparing a tree from two packages: llama.cpp of one lies over the bindings of the other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.tools.made_up import (
    LLAMA,
    REPOSITORY,
    Project,
    below,
    digest,
    patched_project,
    pin,
    write_package,
    write_sdist,
)

NEWER = {**LLAMA, "src/b.cpp": "int b() {\n    return 22;\n}\n", "src/new.cpp": "int c;\n"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return patched_project(tmp_path / "project")


def write_carrier(project: Project, files: dict[str, str] = NEWER) -> Path:
    return write_sdist(project.root / "carrier-2.0.tar.gz", {**REPOSITORY, **below("third/llama.cpp", files)})


def pin_two(project: Project) -> Path:
    carrier = write_carrier(project)
    project.pin(pin("bindings", project.sdist), pin("llama.cpp", carrier, "third/llama.cpp"))
    return carrier


def test_the_second_package_takes_the_place_of_the_bindings_tree(project: Project) -> None:
    carrier = pin_two(project)
    assert "pkg 1.0 and carrier 2.0 with 2 patches" in project.prepare(project.sdist, carrier)
    assert "return 10" in project.text("vendor/llama.cpp/src/a.cpp")
    assert "return 22" in project.text("vendor/llama.cpp/src/b.cpp")
    assert (project.tree / "vendor/llama.cpp/src/new.cpp").exists()
    assert project.text("llama_cpp/x.py") == "x = 10\n"
    assert "up to date" in project.prepare()


def test_repositories_of_packages_are_not_unpacked(project: Project) -> None:
    project.prepare(project.sdist, pin_two(project))
    assert project.git("rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert project.git("log", "--format=%s").split("\n") == ["x: ten", "a: ten", "upstream"]
    assert [str(path.relative_to(project.tree)) for path in project.tree.rglob(".git")] == [".git"]


def test_files_that_both_bases_have_keep_their_time_stamps(project: Project) -> None:
    untouched = project.tree / "vendor/llama.cpp/ggml/ggml.c"
    before = untouched.stat().st_mtime_ns
    project.prepare(project.sdist, pin_two(project))
    assert untouched.stat().st_mtime_ns == before


def test_a_worktree_of_the_old_base_can_move_to_the_new_one(project: Project, tmp_path: Path) -> None:
    project.git("worktree", "add", "--detach", str(tmp_path / "stock"), "upstream")
    project.prepare(project.sdist, pin_two(project))
    subprocess.run(["git", "-C", tmp_path / "stock", "checkout", "--quiet", "--detach", "upstream"], check=True)
    assert (tmp_path / "stock/vendor/llama.cpp/src/new.cpp").exists()


def test_a_file_that_is_neither_package_is_refused(project: Project) -> None:
    carrier, before = pin_two(project), project.state()
    write_carrier(project, {**NEWER, "src/b.cpp": "int evil;\n"})
    done = project.tool("prepare", "--sdist", project.sdist, "--sdist", carrier)
    assert done.returncode != 0
    assert f"{carrier}: sha256 {digest(carrier)} is not the pinned {digest(project.sdist)} or " in done.stderr
    assert project.state() == before


def test_a_download_that_is_not_the_pinned_file_is_refused(project: Project) -> None:
    found = write_package(project.index, "carrier", "2.0", below("third/llama.cpp", NEWER))
    wanted = pin("llama.cpp", found, "third/llama.cpp").replace(digest(found), "0" * 64)
    project.pin(pin("bindings", project.sdist), wanted)
    before = project.state()
    done = project.tool("prepare", "--sdist", project.sdist)
    assert done.returncode != 0
    assert f"sha256 {digest(found)} is not the pinned {'0' * 64}" in done.stderr
    assert project.state() == before


def test_what_cannot_be_downloaded_is_named(project: Project) -> None:
    absent = "[llama.cpp]\npackage = absent\nversion = 1.0\nsha256 = 00\nfolder = llama.cpp\n"
    project.pin(pin("bindings", project.sdist), absent)
    done = project.tool("prepare", "--sdist", project.sdist)
    assert done.returncode != 0
    assert "cannot download absent==1.0: give a copy of its sdist with --sdist FILE" in done.stderr


def test_a_file_fetched_before_serves(project: Project) -> None:
    carrier = pin_two(project)
    for path in (carrier, project.sdist):
        (project.root / "build" / "sdist").mkdir(exist_ok=True)
        path.rename(project.root / "build" / "sdist" / path.name)
    done = project.tool("prepare")
    assert done.returncode == 0, done.stderr


def test_changes_are_not_lost_to_another_base(project: Project) -> None:
    carrier = pin_two(project)
    (project.tree / "llama_cpp/x.py").write_text("x = 99\n")
    done = project.tool("prepare", "--sdist", project.sdist, "--sdist", carrier)
    assert done.returncode != 0
    assert "not committed" in done.stderr
    assert project.text("llama_cpp/x.py") == "x = 99\n"


def test_a_folder_that_is_not_in_the_package_is_named(project: Project) -> None:
    carrier = write_carrier(project)
    project.pin(pin("bindings", project.sdist), pin("llama.cpp", carrier, "fourth/llama.cpp"))
    done = project.tool("prepare", "--sdist", project.sdist, "--sdist", carrier)
    assert done.returncode != 0
    assert "fourth/llama.cpp is no llama.cpp tree" in done.stderr
