"""A bump as one command, on packages that pip fetches from a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.tools.made_up import FILES, LLAMA, LLAMA_H, Project, below, digest, patched_project, pin, write_package

A = "vendor/llama.cpp/src/a.cpp"
NEWER = {**LLAMA, "src/a.cpp": "// newer\n" + LLAMA["src/a.cpp"]}
CLASHING = {**LLAMA, "src/a.cpp": "int a() {\n    return 3;\n}\n"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return patched_project(tmp_path / "project")


def offer(project: Project, files: dict[str, str], name: str = "carrier") -> Path:
    return write_package(project.index, name, "2.0", below("third/llama.cpp", files))


def bump(project: Project, *options: object) -> subprocess.CompletedProcess[str]:
    return project.tool("bump", "carrier==2.0", *options)


def test_one_command_moves_pins_exports_and_checks(project: Project) -> None:
    path = offer(project, NEWER)
    done = bump(project, "--commit", "b7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 sources checked" in done.stdout
    assert pin("llama.cpp", path, "third/llama.cpp") + "commit = b7\n" in (project.patches / "UPSTREAM").read_text()
    assert "// newer" in (project.patches / "llama.cpp/0001-a-ten.patch").read_text()
    assert "up to date" in project.prepare()
    assert project.tool("check").returncode == 0


def test_a_fresh_tree_is_the_bumped_one(project: Project) -> None:
    offer(project, NEWER)
    assert bump(project).returncode == 0
    files = project.git("rev-parse", "upstream^{tree}", "main^{tree}")
    project.tree = project.root / "fresh"
    assert project.tool("--tree", project.tree, "prepare", "--sdist", project.sdist).returncode == 0
    assert project.git("rev-parse", "upstream^{tree}", "main^{tree}") == files


def test_the_bindings_move_alone(project: Project) -> None:
    offer(project, NEWER)
    assert bump(project).returncode == 0
    path = write_package(project.index, "pkg", "2.0", {**FILES, "llama_cpp/new.py": "new = 1\n"})
    done = project.tool("bump", "pkg==2.0")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (project.patches / "UPSTREAM").read_text()
    assert pin("bindings", path) in text
    assert "package = carrier" in text
    assert "// newer" in project.text(A)
    assert project.text("llama_cpp/new.py") == "new = 1\n"


def test_a_copy_at_hand_needs_no_download(project: Project, tmp_path: Path) -> None:
    path = offer(project, NEWER).rename(tmp_path / "copy.tar.gz")
    done = bump(project, "--sdist", path, "--sha256", digest(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"sha256 = {digest(path)}" in (project.patches / "UPSTREAM").read_text()


def test_a_package_that_is_not_there_is_named(project: Project) -> None:
    before = project.state()
    assert "cannot download carrier==2.0" in bump(project).stderr
    assert "carrier is no PACKAGE==VERSION" in project.tool("bump", "carrier").stderr
    assert project.state() == before


def test_another_sha256_is_refused(project: Project) -> None:
    path, before = offer(project, NEWER), project.state()
    done = bump(project, "--sha256", "0" * 64)
    assert done.returncode != 0
    assert f"sha256 {digest(path)} is not the {'0' * 64}" in done.stderr
    assert project.state() == before


def test_a_tree_that_another_package_has_too_is_taken(project: Project) -> None:
    offer(project, NEWER)
    offer(project, {**NEWER, "docs/more.md": "more\n"}, "witness")
    done = bump(project, "--like", "witness==2.0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 files differ" in done.stdout


def test_a_tree_that_differs_from_another_packages_is_refused(project: Project) -> None:
    before = project.state()
    offer(project, NEWER)
    offer(project, {**NEWER, "src/b.cpp": "int evil;\n"}, "witness")
    done = bump(project, "--like", "witness==2.0")
    assert done.returncode != 0
    assert "1 files differ\n  src/b.cpp\n" in done.stdout
    assert "not upstream's own" in done.stderr
    assert project.state() == before


def test_a_conflict_stops_it_and_continue_ends_it(project: Project) -> None:
    path, before = offer(project, CLASHING), project.state()
    done = bump(project)
    assert done.returncode != 0
    assert f"conflict: llama.cpp/0001-a-ten.patch: {A}\n" in done.stdout
    assert project.state() == before
    (project.tree / A).write_text("int a() {\n    return 30;\n}\n")
    project.git("add", A)
    done = project.tool("continue")
    assert done.returncode == 0, done.stdout + done.stderr
    assert pin("llama.cpp", path, "third/llama.cpp") in (project.patches / "UPSTREAM").read_text()
    assert "+    return 30;" in (project.patches / "llama.cpp/0001-a-ten.patch").read_text()
    assert "sources checked" in done.stdout


def test_a_patched_file_that_no_longer_compiles_is_named(project: Project) -> None:
    offer(project, {**LLAMA, "src/a.cpp": "// one\n" + LLAMA["src/a.cpp"] + "int c() { return gone(); }\n"})
    done = bump(project)
    assert done.returncode != 0
    assert f"{project.tree / A} does not compile:" in done.stderr
    assert "gone" in done.stderr


def test_a_source_of_ours_that_no_longer_compiles_is_named(project: Project) -> None:
    offer(project, {**LLAMA, "include/llama.h": LLAMA_H.replace("n_tokens", "count")})
    done = bump(project)
    assert done.returncode != 0
    assert "cpp/ours.cpp does not compile:" in done.stderr


def test_a_struct_that_grew_is_named_with_its_first_new_field(project: Project) -> None:
    offer(project, {**LLAMA, "include/llama.h": LLAMA_H.replace("    float", "    size_t moe;\n    float", 1)})
    done = bump(project)
    assert done.returncode != 0
    assert (
        "llama_cpp/llama_cpp.py: struct llama_batch has `embd` (pointer) as field 1, its header has `moe` (uint64)"
        in done.stderr
    )


def test_verify_tells_of_what_no_build_compiles(project: Project) -> None:
    project.commit("vendor/llama.cpp/src/b.cpp", "2", "20", "b: twenty")
    done = project.tool("verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"not part of this build: {project.tree}/vendor/llama.cpp/src/b.cpp" in done.stdout
