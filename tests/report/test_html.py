"""The HTML page: what it shows, that nothing in a file becomes markup, and how a real browser takes it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kvtuner_gguf.cli import main
from kvtuner_gguf.cli.tune import tune_command
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.rows import KINDS, Row
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.gguffile.stored_plan import load_plan
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.front import Front, Point
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.report.html.axes import Axis, log_axis
from kvtuner_gguf.report.html.colours import cell_colours
from kvtuner_gguf.report.html.commands import commands
from kvtuner_gguf.report.html.findings import Findings
from kvtuner_gguf.report.html.markup import element, escaped
from kvtuner_gguf.report.html.page import page
from kvtuner_gguf.report.html.speeds import Speed, speeds_from_json
from kvtuner_gguf.report.shell import annotating
from kvtuner_gguf.tuning.prices import Prices
from tests.conftest import write_model
from tests.report.browser import browser, chromium

# smaller text is hard to read
SMALLEST_FONT = 9
N_LAYER = 30
SHAPE = ModelShape("llama", (3,) * N_LAYER, 64, 64)
NAMES = ("q2_nl", "q3_nl", "q4_0", "q5_0", "q8_0", "f16")
HOSTILE = (
    "<script>alert(1)</script>",
    "</title></style><img src=http://example.org/x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "]]><!--",
    "\x00\x1b[31m\u202e\ud800 &lt;",
    "w" * 3000,
)


def pairs(*names: str) -> tuple[Pair, ...]:
    return tuple(Pair.parse(names[il % len(names)]) for il in range(N_LAYER))


def keys() -> dict[str, list[float]]:
    sizes = {"largest": 20.0, "largest_centered": 9.0, "rms": 2.0, "rms_centered": 1.2}
    return {name: [size + il % 4 for il in range(N_LAYER)] for name, size in sizes.items()}


FACTS = {
    "text": "c4.utf8",
    "text_tokens": 1024,
    "n_ctx": 512,
    "seed": 3,
    "device": "cpu",
    "keys": keys(),
    "method": "exact",
    "objective": "kld",
    "goal": "3.25 bits per value",
    "for_ctx": 8192,
    "candidates": list(NAMES),
    "prices": "fisher",
    "kld_mean": 0.00285,
    "kld_se": 0.0002,
    "same_top": 97.06,
}
PLAN = Plan(
    pairs("q3_nl/q2_nl", "q4_0/q3_nl", "q2_nl", "q8_0/q5_0"),
    SHAPE,
    FACTS,
    Centers.from_arrays([np.ones(3 * 64)] * N_LAYER, 256),
    Ends(4, 128, "q8_0"),
)
PRICES = Prices(*(({name: 1e-3 / 2**i for i, name in enumerate(NAMES)},) * N_LAYER,) * 2, model=SHAPE)
UNIFORM = tuple(Point(pairs(name), 0.2 / 5**i) for i, name in enumerate(NAMES[:-1]))
FRONT = Front(
    SHAPE,
    "kld",
    (Point(pairs("q2_nl"), 0.1), Point(PLAN.pairs, 0.02), Point(pairs("q8_0"), 1e-5)),
    {"method": "exact"},
    PLAN.ends,
    span=256,
    uniform=UNIFORM,
)
PAPER = replace(FRONT, points=(Point(pairs("q3_nl"), 0.08), Point(pairs("q4_0/q3_nl"), 0.03)), uniform=())
SPEEDS = [
    Speed("m.gguf", cache, "tg128 @ d4096", speed, 0.5) for cache, speed in (("f16/f16", 21.0), ("cfg.json", 30.5))
]


def row(name: str, bits: float, kld: float, kind: str) -> Row:
    return Row(name, bits, bits, int(1440 * bits), kld, kld / 2, 20 * kld, 95.0, 13.0, 1.01, 4.5, kld / 9, kind)


ROWS = [row(f"cache {i} ends 4+128:q8_0", 2.3 + 2 * i, i * 0.01, kind) for i, kind in enumerate(KINDS)]
FOUND = Findings(
    {"cfg.json": PLAN},
    {"cfg.tune": FRONT, "paper.tune": replace(PAPER, provenance={"method": "paper"})},
    [PRICES],
    {"eval.json": ROWS},
    SPEEDS,
    "model.gguf",
)


def hostile() -> Findings:
    """Hostile words wherever a file can have words."""
    plans = {
        name: replace(PLAN, provenance={**FACTS, name: [name, {name: name}], "goal": name, "text": name})
        for name in HOSTILE
    }
    fronts = {name: replace(FRONT, measure=name, provenance={"method": name}) for name in HOSTILE}
    rows = {name: [replace(one, name=f"{name}{i}") for i, one in enumerate(ROWS)] for name in HOSTILE}
    speeds = [Speed(name, name, name, 10.0, 1.0) for name in HOSTILE]
    shape = replace(SHAPE, architecture=HOSTILE[0])
    plans["of a strange model"] = Plan(PLAN.pairs, shape, {"keys": keys()})
    return Findings(plans, fronts, [PRICES], rows, speeds, HOSTILE[1])


class Elements(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


TAGS = (
    "html head meta title style body main h1 h2 h3 section article div p span b pre table thead tbody tr td th figure "
    "figcaption svg g text path rect"
)
ATTRIBUTES = (
    "lang charset name content http-equiv class style viewbox role aria-label x y d width height rx fill text-anchor "
    "transform"
)


@pytest.mark.parametrize("found", [FOUND, hostile(), Findings()], ids=["found", "hostile", "empty"])
def test_no_word_of_a_file_becomes_markup(found: Findings) -> None:
    text = page(found)
    elements = Elements(text)
    assert set(elements.tags) <= set(TAGS.split())
    assert set(elements.attributes) <= set(ATTRIBUTES.split()), "nothing that runs, and nothing that is fetched"
    assert not any(
        "url(" in style or "@import" in style for style in [*elements.attributes["class"], text.split("</style>")[0]]
    )
    text.encode()  # no halves of pairs
    assert not set(map(chr, [*range(9), 11, 12, *range(14, 32), 127])) & set(text)
    for word in HOSTILE[:4] if found.rows and found.model == HOSTILE[1] else ():
        assert any(word in said for said in elements.texts), "it is shown as it is"


def test_texts_and_attributes_are_escaped_once() -> None:
    inner = element("b", 'a < b & "c"')
    assert inner == "<b>a &lt; b &amp; &quot;c&quot;</b>"
    assert (
        element("p", inner, class_='"><i>', x=0.5, width=None) == f'<p class="&quot;&gt;&lt;i&gt;" x="0.5">{inner}</p>'
    )
    assert escaped("a\x00\ud800b") == "a\ufffd\ufffdb"


def test_the_page_has_all_that_was_found() -> None:
    text = page(FOUND)
    titles = ("Types by layer", "Front", "Memory by context length", "Judged on other text", "Speed", "Provenance")
    assert all(f"<h2>{title}</h2>" in text for title in (*titles, "Keys before and after centering", "The commands"))
    assert "layer 3: K q8_0, V q5_0; K costs 6.25e-05 nats, V 0.000125" in text
    assert text.count('class="cell"') == 2 * N_LAYER
    assert all(f">{name}/{name}</text>" in text for name in NAMES[:-1]), "uniform pairs are named in the front"
    assert "paper.tune, the paper&#x27;s method" in text
    assert "0.0029 +- 0.0002" in text
    assert "30.5 ± 0.5 t/s" in text
    context = ContextSize(32768)
    mib = (PLAN.n_bytes(SHAPE, context) + PLAN.centers_bytes(SHAPE, context)) / 2**20
    assert f">{mib:,.1f} MiB, " in text
    assert ">720.0 MiB, 100%</text>" in text


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("q4_0/q4_0 centered ends 4+128:q8_0", "centered uniform", "q4_0/q4_0"),
        ("stock q4_0/q4_0", "uniform", "q4_0/q4_0"),
        ("my plan/2", "plan", "my plan/2"),
    ],
)
def test_uniform_rows_are_drawn_with_their_pair_alone(name: str, kind: str, said: str) -> None:
    text = page(Findings(rows={"eval.json": [row(name, 4.5, 0.1, kind)]}))
    assert f'class="name">{said}</text>' in text
    assert f"<td>{name}</td>" in text


def test_commands_are_broken_between_their_words_and_copied_whole() -> None:
    text = page(Findings({"cfg.json": PLAN}))
    assert '<span class="word">--for-ctx</span> <span class="word">8192</span>' in text
    (style,) = re.findall(r"\.word \{ (.*?) \}", text)
    assert "display: inline-block" in style
    shown = [line.rstrip() for line in "".join(Elements(text).texts).splitlines()]
    assert all(f"$ {command}" in shown for command in commands(PLAN, "cfg.json", None)[1:])


def test_what_was_not_given_is_left_out() -> None:
    text = page(Findings({"cfg.json": Plan(PLAN.pairs)}))
    assert "<h2>Types by layer</h2>" in text
    assert not any(f"<h2>{title}" in text for title in ("Front", "Memory", "Judged", "Keys", "Speed"))
    assert "price" not in text.partition("</style>")[2].partition("What types cost")[0]


def test_few_bits_and_many_have_colours_of_their_own_with_text_to_read() -> None:
    found = [cell_colours(bits) for bits in (2.25, 3.25, 4.5, 5.5, 8.5, 16)]
    assert len({fill for fill, _ in found}) == 6
    assert (found[0][1], found[-1][1]) == ("#1b1b1f", "#ffffff")
    assert cell_colours(0.1) == cell_colours(2)


def test_axes_go_by_ratios() -> None:
    axis = Axis(2, 8, 0, 100, (1, 2, 4, 16))
    assert [axis.at(value) for value in (2, 4, 8)] == pytest.approx([0, 50, 100])
    assert axis.within() == [2, 4]
    assert Axis(0, 10, 100, 0, (), is_log=False).at(2.5) == 75
    assert log_axis([1e-6, 0.1], 0, 1).within() == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that has the files which plans name."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "a.txt", "b c.txt", "`reboot`"):
        Path(name).touch()


@pytest.mark.usefixtures("here")
def test_the_commands_are_those_of_this_version() -> None:
    tune, annotate, serve, *_, again = commands(PLAN, "my cfg.json", None)
    words = shlex.split(tune)
    with tune_command.make_context("tune", words[2:]) as context:
        given = context.params
    wanted = {"bits": 3.25, "tokens": 1024, "ctx": 512, "seed": 3, "for_ctx": 8192, "ends": "4+128:q8_0", "texts": ()}
    assert {name: given[name] for name in wanted} == wanted
    assert (given["candidates"], given["prices"], given["center"]) == (tuple(NAMES), "fisher", True)
    assert annotate == annotating(Path("model.gguf"), Path("my cfg.json"))
    assert serve == "llama-server -m model-kv.gguf"
    assert again == "kvtuner-gguf report 'my cfg.json' 'my cfg.tune' eval.json bench.json -o report.html"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"goal": "512 MiB for 32768 tokens"}, ["--mib", "512"]),
        ({"goal": "a mean KLD of 0.01"}, ["--max-kld", "0.01"]),
        ({"text": "0.5 a.txt + 1 b c.txt"}, ["--text", "a.txt=0.5", "--text", "b c.txt=1"]),
        ({"text": "a.txt"}, ["--text", "a.txt"]),
        ({"method": "paper"}, ["--method", "paper"]),
        ({"engine": "llama"}, ["--engine", "llama"]),
        ({"fixed": {"0": "q8_0/q4_0"}}, ["--fix", "0=q8_0/q4_0"]),
        ({"goal": "$(reboot)", "text": "`reboot`"}, ["--text", "`reboot`"]),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_command_has_the_options_of_its_plan(facts: dict, words: list[str]) -> None:
    found = shlex.split(commands(replace(PLAN, provenance={**FACTS, **facts}), "cfg.json", None)[0])
    tune_command.make_context("tune", found[2:])
    assert any(found[i : i + len(words)] == words for i in range(len(found)))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a plan, that of its tuning, and results of eval and llama-bench."""
    PLAN.save(tmp_path / "cfg.json")
    work = tmp_path / "cfg.tune"
    work.mkdir()
    PLAN.save(work / "centers.json")
    for name, data in (
        ("front", FRONT.to_json()),
        ("fisher", PRICES.to_json()),
        ("tuning", {"schema": "kvtuner.tuning/1"}),
    ):
        (work / f"{name}.json").write_text(json.dumps(data))
    (tmp_path / "eval.json").write_text(json.dumps([asdict(one) for one in ROWS]))
    entry = {"model_filename": "/x/m.gguf", "kv_config": "none", "type_k": "f16", "type_v": "f16"}
    entry |= {"n_prompt": 0, "n_gen": 128, "n_depth": 4096, "avg_ts": 21.0, "stddev_ts": 0.5}
    bench = [entry, {**entry, "kv_config": "/plans/cfg.json", "avg_ts": 30.5}]
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    return tmp_path


def test_report_tells_files_by_what_they_hold(files: Path) -> None:
    given = [str(files / name) for name in ("bench.json", "cfg.tune", "eval.json", "cfg.json")]
    out = files / "report.html"
    done = CliRunner().invoke(main, ["report", *given, "-o", str(out), "--model", "model.gguf"])
    assert done.exit_code == 0, done.output
    only = {name: one for name, one in FOUND.fronts.items() if name == "cfg.tune"}
    assert out.read_text() == page(replace(FOUND, fronts=only))


def test_report_shows_the_plan_of_an_annotated_model(tmp_path: Path) -> None:
    model, out = tmp_path / "my model.gguf", tmp_path / "report.html"
    annotate(write_model(model), Plan.uniform(Pair.parse("q8_0/q4_0"), 4), model)
    done = CliRunner().invoke(main, ["report", str(model), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "<h2>Types by layer</h2>" in out.read_text()
    plan, _ = load_plan(model)
    assert plan is not None
    serve, judge, again = commands(plan, model.name, None)
    assert serve == "llama-server -m 'my model.gguf'"
    assert judge == "kvtuner-gguf eval 'my model.gguf' --uniform q8_0 --uniform q4_0 --json > eval.json"
    assert again == "kvtuner-gguf report 'my model.gguf' eval.json -o report.html"


def test_report_passes_over_what_a_tuning_has_besides(files: Path) -> None:
    replace(PLAN, pairs=pairs("f16"), ends=None).save(files / "cfg.tune" / "centers.json")
    given = [str(path) for path in sorted((files / "cfg.tune").iterdir())]
    done = CliRunner().invoke(main, ["report", *given, "-o", str(files / "report.html")])
    assert done.exit_code == 0, done.output
    assert "<h2>Front</h2>" in (files / "report.html").read_text()
    assert "<h2>Types by layer</h2>" not in (files / "report.html").read_text(), "centers are no plan to show"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"schema": "other"}, "it holds nothing that a report shows"),
        ([], "it holds nothing that a report shows"),
        ([{"name": "x"}], "row 0: it must have name, bits_per_value"),
        ([{**asdict(ROWS[0]), "kind": "<b>"}], "row 0: unknown kind '<b>': use one of f16, uniform"),
        ([{**asdict(ROWS[0]), "ppl": "1"}], "row 0: 'ppl' is '1'"),
        ([{"avg_ts": -1}], "entry 0: 'n_prompt' is no number"),
    ],
)
def test_report_says_which_file_it_cannot_show(data: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(data))
    done = CliRunner().invoke(main, ["report", str(tmp_path / "x.json"), "-o", str(tmp_path / "out.html")])
    assert done.exit_code == 1
    assert f"{tmp_path}/x.json: {words}" in done.output
    assert not (tmp_path / "out.html").exists()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(tmp_path), "-o", str(tmp_path / "out.html")])
    assert "is no folder of a tuning that has ended" in done.output


def test_damaged_keys_are_named_with_their_plan() -> None:
    plan = replace(PLAN, provenance={"keys": {"largest": [1]}})
    with pytest.raises(KvtunerError, match=r"^cfg\.json: the key spread must have"):
        page(Findings({"cfg.json": plan}))


def test_numbers_that_no_axis_holds_are_left_out() -> None:
    rows = [row("a", 4, 1e308, "plan"), row("b", 0, 0.1, "plan"), row("c", 4, 5e-324, "plan"), row("d", 4, 0.1, "plan")]
    text = page(Findings(rows={"eval.json": rows}, fronts={"f": replace(FRONT, points=(Point(pairs("q4_0"), 1e300),))}))
    assert text.count('class="mark"') == 1 + len(UNIFORM)


@pytest.mark.parametrize(
    ("counts", "name"), [((512, 0, 0), "pp512"), ((0, 128, 4096), "tg128 @ d4096"), ((64, 8, 0), "pp64+tg8")]
)
def test_tests_of_llama_bench_have_its_names(counts: tuple[int, int, int], name: str) -> None:
    entry = dict(zip(("n_prompt", "n_gen", "n_depth"), counts, strict=True)) | {"avg_ts": 2, "stddev_ts": 0}
    assert speeds_from_json([{**entry, "type_k": "q8_0", "type_v": "q4_0"}])[0].test == name


@pytest.fixture(scope="module")
def opened() -> Iterator:
    if chromium() is None:
        pytest.skip("no browser opens the page: apt install chromium")
    with browser() as running:
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("found", [FOUND, hostile()], ids=["found", "hostile"])
def test_a_browser_shows_the_page(opened, found: Findings, width: int, scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(found))
    view = opened.show(path, width, scheme)
    assert view.messages == []
    assert view.requests == [path.as_uri()]
    assert view.scroll_width <= width, view.too_wide
    assert view.too_wide == []
    assert view.smallest_font >= SMALLEST_FONT


def test_the_page_is_dark_where_its_reader_is(opened, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(FOUND))
    light, dark = (opened.show(tmp_path / "page.html", 400, scheme).background for scheme in ("light", "dark"))
    assert (light, dark) == ("rgb(251, 251, 253)", "rgb(23, 23, 27)")


def test_the_browser_would_notice(opened, tmp_path: Path) -> None:
    bad = '<p style="width:900px;font-size:5px">x</p><img src="http://127.0.0.1:9/x">'
    bad += "<script>console.error(1); y()</script>"
    (tmp_path / "bad.html").write_text(f"<!doctype html><body>{bad}")
    view = opened.show(tmp_path / "bad.html", 400, "light")
    assert len(view.messages) >= 3
    assert "http://127.0.0.1:9/x" in view.requests
    assert view.scroll_width > 900
    assert view.too_wide
    assert view.smallest_font == 5
