"""`GET /kv` of a real server: the plan that runs, for programs and for people."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.html.colours import cell_colours
from kvtuner_gguf.server.llama_server import Server, running_server
from tests.report.browser import browser, chromium
from tests.tiny import write_tiny

pytestmark = pytest.mark.native

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
PROGRAM = "application/json"
NAMES = ("q8_0/q4_0", "f16/f16", "q2_nl/q3_nl", "q5_1/iq4_nl")
PLAN = Plan(tuple(map(Pair.parse, NAMES)), ends=Ends(4, 32, "q8_0"))
HOSTILE = '<script>alert(1)<!script>&".json'  # a name has no slash
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    model = write_tiny(folder / "model.gguf", "llama", n_layer=len(NAMES))
    PLAN.save(folder / HOSTILE)
    options = ["--kv-config", str(folder / HOSTILE), "--api-key", "secret"]
    with running_server(model, n_ctx=256, options=options) as running:
        yield running


def get(
    server: Server, path: str, accept: str | None = None, name: str = "Accept", key: str = "secret"
) -> tuple[str, str]:
    """The kind of the answer and its text."""
    headers = {"Authorization": f"Bearer {key}"} | ({} if accept is None else {name: accept})
    with _OPENER.open(urllib.request.Request(server.url + path, headers=headers), timeout=60) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def refusal(server: Server, path: str, **how: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server, path, **how)
    return caught.value.code, caught.value.read().decode()


class Page(HTMLParser):
    """The tags of a page, and its cells with their styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[tuple[str, str]] = []
        self.words = ""
        self._style: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "td":
            self._style = dict(attrs).get("style") or ""

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._style is not None:
            self.cells.append((data, self._style))
            self._style = None

    def handle_endtag(self, tag: str) -> None:
        self._style = None


@pytest.mark.parametrize(
    ("path", "accept", "name"),
    [
        ("/kv?format=json", None, "Accept"),
        ("/kv?format=json", BROWSER, "Accept"),
        ("/kv", PROGRAM, "Accept"),
        ("/kv", "Application/JSON, */*", "accept"),
    ],
)
def test_programs_get_what_props_have(path: str, accept: str | None, name: str, server: Server) -> None:
    kind, text = get(server, path, accept, name)
    assert kind == "application/json; charset=utf-8"
    found = json.loads(text)
    assert found == json.loads(get(server, "/props")[1])["kv_cache"]
    assert found["fingerprint"] == PLAN.fingerprint


@pytest.mark.parametrize(
    ("path", "accept"), [("/kv", None), ("/kv", "*/*"), ("/kv", f"{BROWSER},{PROGRAM}"), ("/kv?format=html", PROGRAM)]
)
def test_people_get_a_page_in_the_colours_of_the_report(path: str, accept: str | None, server: Server) -> None:
    kind, text = get(server, path, accept)
    assert kind == "text/html; charset=utf-8"
    page = Page(text)
    expected = []
    for name in (name for pair in PLAN.pairs for name in (pair.k, pair.v)):
        fill, ink = cell_colours(cache_type(name).bits_per_value)
        expected.append((name, f"background:{fill};color:{ink}"))
    assert [cell for cell in page.cells if cell[1]] == expected
    assert [cell for cell, style in page.cells if not style and not cell.isdigit()] == ["exact ends"] * 3
    assert PLAN.fingerprint in page.words


def test_no_word_of_a_path_becomes_markup(server: Server) -> None:
    page = Page(get(server, "/kv")[1])
    assert HOSTILE in page.words
    assert page.tags == set(["html", "head", "meta", "title", "style", "body", "h1", "p", "table", "tr", "th", "td"])


def test_other_formats_and_strangers_are_refused(server: Server) -> None:
    code, said = refusal(server, "/kv?format=xml")
    assert code == 400
    assert "unknown format: use json or html" in said
    assert refusal(server, "/kv", key="guess")[0] == 401


@pytest.mark.skipif(chromium() is None, reason="no browser opens the page: apt install chromium")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_the_page(width: int, server: Server, tmp_path: Path) -> None:
    (tmp_path / "kv.html").write_text(get(server, "/kv")[1])
    with browser() as running:
        view = running.show(tmp_path / "kv.html", width, "dark")
    assert view.messages == []
    assert view.requests == [(tmp_path / "kv.html").as_uri()]
    assert view.scroll_width <= width
    assert view.too_wide == []
