"""The life of a patch on a source package made here: prepare, change, export, prepare again, rebase."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "llama_patches.py"
FILES = {
    "vendor/llama.cpp/src/a.cpp": "int a() {\n    return 1;\n}\n",
    "vendor/llama.cpp/src/b.cpp": "int b() {\n    return 2;\n}\n",
    "vendor/llama.cpp/.git": "gitdir: ../../.git/modules/vendor/llama.cpp\n",
    "llama_cpp/x.py": "x = 1\n",
}


def write_sdist(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"pkg-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


class Project:
    """A project folder with the tool, a pin of a made-up package and no patches yet."""

    def __init__(self, root: Path) -> None:
        self.root, self.tree = root, root / "build" / "src"
        (root / "tools").mkdir(parents=True)
        (root / "patches").mkdir()
        shutil.copy(TOOL, root / "tools")
        self.sdist = write_sdist(root / "pkg-1.0.tar.gz", FILES)
        digest = hashlib.sha256(self.sdist.read_bytes()).hexdigest()
        (root / "patches" / "UPSTREAM").write_text(f"package = pkg\nversion = 1.0\nsha256 = {digest}\n")
        (root / "patches" / "series").write_text("")

    def tool(self, *args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.root / "tools" / TOOL.name), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True)

    def prepare(self) -> str:
        done = self.tool("prepare", "--sdist", self.sdist)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commit(self, name: str, old: str, new: str, title: str) -> None:
        path = self.tree / name
        path.write_text(path.read_text().replace(old, new))
        identity = ("-c", "user.name=a", "-c", "user.email=a@localhost")
        subprocess.run(["git", "-C", self.tree, *identity, "commit", "-qam", title], check=True)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    made.prepare()
    made.commit("vendor/llama.cpp/src/a.cpp", "1", "10", "a: ten")
    made.commit("llama_cpp/x.py", "1", "10", "x: ten")
    assert made.tool("export").returncode == 0
    return made


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
