"""Links between Markdown files of the repository lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("*.md", "docs/**/*.md", "configs/**/*.md", "patches/*.md")
PAGES = sorted(path for pattern in PLACES for path in ROOT.glob(pattern))
CODE = re.compile(r"^( *)```.*?^ *```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(path: Path) -> str:
    """Without what stands in code."""
    return CODE.sub("", path.read_text())


def anchor(heading: str) -> str:
    """What a heading is called in a link."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {anchor(line.lstrip("#").strip()) for line in text.splitlines() if re.match(r"#+ ", line)}


def broken_links(path: Path) -> Iterator[str]:
    for target in LINK.findall(text_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, part = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        if not place.exists() or (part and part not in anchors(place)):
            yield target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert not list(broken_links(path))


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One `q4_0` heading, more\n")
    good = "[a](other.md) [b](other.md#one-q4_0-heading-more) [c](https://example.org/x) `[d](none.md)`"
    page.write_text(f"{good}\n[e](none.md) [f](other.md#two) [g](#none)\n")
    assert list(broken_links(page)) == ["none.md", "other.md#two", "#none"]


def test_every_page_of_the_documentation_is_in_the_navigation() -> None:
    navigation = (ROOT / "tools" / "mkdocs.yml").read_text()
    names = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    left_out = {name for name in names if not name.startswith("commands/") and f": {name}\n" not in navigation}
    assert not left_out


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="make docs installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", "tools/mkdocs.yml"]
    done = subprocess.run([*command, "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    gallery = (tmp_path / "gallery.html").read_text()
    assert 'href="configs/smollm2-135m-4.0.json"' in gallery, "a link out of docs/ leads to a page of the site"
    assert (tmp_path / "configs" / "smollm2-135m-4.0.json").is_file()
