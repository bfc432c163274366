"""A hook of mkdocs: pages and files outside docs/ are part of the site, and links between all of them lead there.

Links in the sources are those of the repository, so that they work where the Markdown is read as it is.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "configs/**/*.md", "configs/**/*.json", "patches/README.md")
FOLDER = "docs"
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Names of folders in the navigation stand for the pages in them."""
    for section in config.nav or []:
        for title, place in section.items():
            if isinstance(place, str) and place.endswith("/"):
                names = sorted(path.name for path in (ROOT / FOLDER / place).glob("*.md"))
                section[title] = [place + name for name in names]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """``files`` with those of ``OUTSIDE``, under their paths in the repository."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """``markdown`` with links as they are in the site."""
    place = page.file.src_uri
    is_outside = Path(page.file.src_dir or "") == ROOT
    source = place if is_outside else f"{FOLDER}/{place}"

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        in_site = target.removeprefix(f"{FOLDER}/")
        return match[1] + os.path.relpath(in_site, posixpath.dirname(place) or ".") + match[3]

    return LINK.sub(moved, markdown)
