"""Moving patches to other sources: which are taken, what is refused, and what a conflict leaves as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.tools.made_up import FILES, LLAMA, REPOSITORY, Project, below, digest, patched_project, pin, write_sdist

A, X = "vendor/llama.cpp/src/a.cpp", "llama_cpp/x.py"
NEWER = {**LLAMA, "src/a.cpp": "// newer\n" + LLAMA["src/a.cpp"], "src/c.cpp": "int c;\n"}
CLASHING = {**LLAMA, "src/a.cpp": "int a() {\n    return 3;\n}\n"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return patched_project(tmp_path / "project")


def write_folder(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def carrier(project: Project, files: dict[str, str]) -> Path:
    return write_sdist(project.root / "carrier-2.0.tar.gz", {**REPOSITORY, **below("third/llama.cpp", files)})


def bindings(project: Project, **files: str) -> Path:
    return write_sdist(project.root / "pkg-2.0.tar.gz", {**FILES, **files})


def rebase(project: Project, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return project.tool("rebase", "--sdist", path, *options)


def resolve(project: Project, name: str, text: str) -> subprocess.CompletedProcess[str]:
    (project.tree / name).write_text(text)
    project.git("add", name)
    return project.tool("continue")


def assert_moved(project: Project) -> None:
    assert project.text(A) == NEWER["src/a.cpp"].replace("1", "10")
    assert (project.tree / "vendor/llama.cpp/src/c.cpp").exists()
    assert project.text(X) == "x = 10\n"
    assert project.git("log", "--format=%s", "upstream..main").split("\n") == ["x: ten", "a: ten"]


def test_a_folder_is_taken_and_left_as_it_is(project: Project, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "llama", NEWER)
    done = rebase(project, folder)
    assert done.returncode == 0, done.stderr
    assert_moved(project)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(NEWER)


def test_an_sdist_that_carries_llama_cpp_is_taken(project: Project) -> None:
    done = rebase(project, carrier(project, NEWER))
    assert done.returncode == 0, done.stderr
    assert "folder third/llama.cpp" in done.stdout
    assert "2 of 2 patches" in done.stdout
    assert_moved(project)


def test_an_sdist_of_the_bindings_brings_its_llama_cpp(project: Project) -> None:
    done = rebase(project, bindings(project, **below("vendor/llama.cpp", NEWER), **{X: "x = 1\ny = 2\n"}))
    assert done.returncode != 0
    assert f"conflict: bindings/0001-x-ten.patch: {X}" in done.stdout
    assert resolve(project, X, "x = 10\n").returncode == 0
    assert_moved(project)


def test_bindings_leave_a_llama_cpp_with_a_pin_of_its_own(project: Project) -> None:
    llama = carrier(project, {**LLAMA, "src/c.cpp": "int c;\n"})
    project.pin((project.patches / "UPSTREAM").read_text(), pin("llama.cpp", llama, "third/llama.cpp"))
    project.prepare(project.sdist, llama)
    done = rebase(project, bindings(project, **{"llama_cpp/new.py": "new = 1\n"}))
    assert done.returncode == 0, done.stderr
    assert project.text("llama_cpp/new.py") == "new = 1\n"
    assert (project.tree / "vendor/llama.cpp/src/c.cpp").exists()
    assert "return 10" in project.text(A)


def test_the_trees_own_repository_stays(project: Project) -> None:
    config = (project.tree / ".git/config").read_text()
    assert rebase(project, bindings(project)).returncode == 0
    assert (project.tree / ".git/config").read_text() == config
    assert project.git("rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert project.git("status", "--porcelain") == ""
    assert project.git("ls-tree", "-r", "--name-only", "upstream", "--", ".git") == ""


def test_the_tag_moves_with_the_patches_and_nothing_calls_the_tree_prepared(project: Project) -> None:
    before = project.state()
    assert rebase(project, carrier(project, NEWER)).returncode == 0
    assert project.git("rev-parse", "upstream") != before[0]
    assert project.git("merge-base", "upstream", "main") == project.git("rev-parse", "upstream")
    assert not (project.tree / ".git/kvtuner-stamp").exists()
    done = project.tool("export")
    assert "pin them there" in done.stdout
    assert not (project.tree / ".git/kvtuner-stamp").exists()


def test_once_pinned_the_tree_is_what_a_fresh_one_would_be(project: Project) -> None:
    llama = carrier(project, NEWER)
    assert rebase(project, llama).returncode == 0
    project.pin((project.patches / "UPSTREAM").read_text(), pin("llama.cpp", llama, "third/llama.cpp"))
    assert project.tool("export").returncode == 0
    assert "up to date" in project.prepare()
    files = project.git("rev-parse", "upstream^{tree}", "main^{tree}")
    project.tree = project.root / "fresh"
    done = project.tool("--tree", project.tree, "prepare", "--sdist", project.sdist, "--sdist", llama)
    assert done.returncode == 0, done.stderr
    assert project.git("rev-parse", "upstream^{tree}", "main^{tree}") == files


def test_a_conflict_is_listed_and_moves_nothing(project: Project) -> None:
    before = project.state()
    done = rebase(project, carrier(project, CLASHING))
    assert done.returncode != 0
    assert f"conflict: llama.cpp/0001-a-ten.patch: {A}\n" in done.stdout
    assert f"llama.cpp/0001-a-ten.patch stopped at {A}" in done.stderr
    assert project.state() == before
    assert "being rebased" in project.tool("prepare", "--sdist", project.sdist).stderr


def test_all_conflicts_are_listed_at_once(project: Project) -> None:
    done = rebase(project, bindings(project, **below("vendor/llama.cpp", CLASHING), **{X: "x = 3\n"}))
    assert [line for line in done.stdout.split("\n") if line.startswith("conflict")] == [
        f"conflict: llama.cpp/0001-a-ten.patch: {A}",
        f"conflict: bindings/0001-x-ten.patch: {X}",
    ]


def test_a_rebase_goes_on_from_conflict_to_conflict(project: Project) -> None:
    before = project.state()
    rebase(project, bindings(project, **below("vendor/llama.cpp", CLASHING), **{X: "x = 3\n"}))
    done = resolve(project, A, "int a() {\n    return 30;\n}\n")
    assert done.returncode != 0
    assert f"bindings/0001-x-ten.patch stopped at {X}" in done.stderr
    assert project.state() == before
    done = resolve(project, X, "x = 30\n")
    assert done.returncode == 0, done.stderr
    assert project.git("rev-parse", "upstream") != before[0]
    assert "return 30" in project.text(A)
    assert project.git("log", "--format=%s", "upstream..main").split("\n") == ["x: ten", "a: ten"]


def test_continue_waits_for_what_is_not_resolved(project: Project) -> None:
    rebase(project, carrier(project, CLASHING))
    done = project.tool("continue")
    assert done.returncode != 0
    assert f"stopped at {A}" in done.stderr


def test_a_rebase_that_git_finished_counts(project: Project) -> None:
    rebase(project, carrier(project, CLASHING))
    (project.tree / A).write_text("int a() {\n    return 30;\n}\n")
    project.git("add", A)
    project.git("rebase", "--continue")
    done = project.tool("continue")
    assert done.returncode == 0, done.stderr
    assert project.git("merge-base", "upstream", "main") == project.git("rev-parse", "upstream")


def test_an_aborted_rebase_leaves_the_tree_prepared(project: Project) -> None:
    rebase(project, carrier(project, CLASHING))
    project.git("rebase", "--abort")
    assert "was aborted" in project.tool("continue").stderr
    assert "up to date" in project.prepare()
    assert project.tool("check").returncode == 0
    assert rebase(project, carrier(project, NEWER)).returncode == 0
    assert_moved(project)


def test_a_patch_that_upstream_has_is_dropped(project: Project) -> None:
    done = rebase(project, carrier(project, {**LLAMA, "src/a.cpp": LLAMA["src/a.cpp"].replace("1", "10")}))
    assert done.returncode == 0, done.stderr
    assert "1 of 2 patches" in done.stdout


def test_another_sha256_is_refused(project: Project) -> None:
    before, path = project.state(), carrier(project, NEWER)
    done = rebase(project, path, "--sha256", "0" * 64)
    assert done.returncode != 0
    assert f"sha256 {digest(path)} is not the {'0' * 64}" in done.stderr
    assert project.state() == before
    assert rebase(project, path, "--sha256", digest(path)).returncode == 0


def test_one_of_two_trees_must_be_named(project: Project) -> None:
    files = {**below("old/llama.cpp", LLAMA), **below("third/llama.cpp", NEWER), "copy/include/llama.h": ""}
    path = write_sdist(project.root / "carrier-2.0.tar.gz", files)
    done = rebase(project, path)
    assert done.returncode != 0
    assert (
        "llama.cpp lies in old/llama.cpp and third/llama.cpp there: name the one to take with --folder" in done.stderr
    )
    assert rebase(project, path, "--folder", "third/llama.cpp").returncode == 0
    assert_moved(project)


@pytest.mark.parametrize("option", [(), ("--folder", "src")])
def test_a_package_without_llama_cpp_is_refused(project: Project, option: tuple[str, ...]) -> None:
    done = rebase(project, write_sdist(project.root / "other-1.0.tar.gz", {"src/x.c": ""}), *option)
    assert done.returncode != 0
    assert "no folder" in done.stderr or "no llama.cpp tree" in done.stderr


def test_a_file_that_is_no_sdist_is_refused(project: Project) -> None:
    path = project.root / "carrier-2.0.tar.gz"
    path.write_text("nothing")
    assert "is no sdist" in rebase(project, path).stderr


def test_uncommitted_changes_are_refused(project: Project) -> None:
    (project.tree / X).write_text("x = 99\n")
    assert "not committed" in rebase(project, carrier(project, NEWER)).stderr
    assert project.text(X) == "x = 99\n"


def test_nothing_was_begun(project: Project) -> None:
    assert "no rebase was begun" in project.tool("continue").stderr
