"""patches/UPSTREAM: two pins, or one that serves for both parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from upstream.pins import FILE, LLAMA, Pin, Pins

ONE = "[bindings]\npackage = pkg\nversion = 1.0\nsha256 = aa\nrelease = 3\n"
TWO = f"{ONE}\n[llama.cpp]\npackage = carrier\nversion = 2.0\nsha256 = bb\nfolder = third/llama.cpp\ncommit = b7\n"


def read(tmp_path: Path, text: str) -> Pins:
    path = tmp_path / "UPSTREAM"
    path.write_text(text)
    return Pins.read(path)


def test_both_parts_have_a_pin(tmp_path: Path) -> None:
    pins = read(tmp_path, TWO)
    assert pins.bindings == Pin("pkg", "1.0", "aa")
    assert pins.llama == Pin("carrier", "2.0", "bb", "third/llama.cpp", "b7")
    assert pins.release == "3"


@pytest.mark.parametrize("text", [ONE, TWO.replace("carrier", "pkg").replace("2.0", "1.0")])
def test_the_bindings_own_tree_serves(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).llama is None


def test_another_version_of_the_bindings_package_lies_over_them(tmp_path: Path) -> None:
    assert read(tmp_path, TWO.replace("carrier", "pkg")).llama == Pin("pkg", "2.0", "bb", "third/llama.cpp", "b7")


@pytest.mark.parametrize("text", [ONE, TWO])
def test_what_is_written_reads_the_same(tmp_path: Path, text: str) -> None:
    pins = read(tmp_path, text)
    assert read(tmp_path, pins.text()) == pins


def test_the_projects_own_file_is_as_written() -> None:
    assert Pins.read().text() == FILE.read_text()


def test_each_base_has_its_identity(tmp_path: Path) -> None:
    one, two = read(tmp_path, ONE), read(tmp_path, TWO)
    elsewhere = two.moved(LLAMA, Pin("carrier", "2.0", "bb", "other"))
    assert one.identity == "aa"
    assert len({one.identity, two.identity, elsewhere.identity}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE.replace("sha256 = aa\n", ""), "sha256"),
        (ONE + "tag = 1\n", "tag"),
        ("package = pkg\n", "no section headers"),
        ("[llama.cpp]\npackage = pkg\n", "bindings"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SystemExit, match=rf"UPSTREAM: .*{message}"):
        read(tmp_path, text)
