"""The page: what was found, from the plan to the commands that repeat it."""

from __future__ import annotations

from pathlib import Path

from kvtuner_gguf import __version__
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.plan.ends import ENDS_CTX
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.html import sections
from kvtuner_gguf.report.html.findings import Findings
from kvtuner_gguf.report.html.markup import Markup, element, joined
from kvtuner_gguf.report.html.style import STYLE
from kvtuner_gguf.report.numbers import with_error

# nothing is run and nothing is fetched, whatever a file holds
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# the wide one first, then those that stand side by side where there is room
_WIDE = (sections.layers,)
_RESULTS = (sections.fronts, sections.memory, sections.speed, sections.judged, sections.centering)
_ORIGIN = (sections.repeating, sections.provenance)


def save_page(found: Findings, path: Path) -> None:
    """Write the page to ``path``, whole or not at all."""
    atomicfile.write_text(path, page(found))


def page(found: Findings) -> str:
    """The whole page as HTML. Raises `KvtunerError` where what a plan says of its keys is damaged."""
    title = f"KV cache of {found.model}" if found.model else "KV cache report"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    wide, results, origin = ([make(found) for make in makers] for makers in (_WIDE, _RESULTS, _ORIGIN))
    made = element("p", f"Made by kvtuner-gguf {__version__}.", class_="note")
    tiles = [_tiles(name, plan) for name, plan in found.plans.items()]
    grids = [element("div", *parts, class_="beside") for parts in (results, origin) if any(parts)]
    main = element("main", element("h1", title), *tiles, *wide, *grids, made)
    return joined(Markup("<!doctype html>\n"), element("html", head, element("body", main), lang="en")) + "\n"


def _tiles(name: str, plan: Plan) -> Markup:
    """The figures of a plan that matter most."""
    facts = plan.provenance
    figures = [("plan", name), ("bits per value", f"{plan.bits_per_value():.3f}")]
    if plan.model is not None and (plan.ends is not None or plan.centers is not None):
        figures.append((f"bits with ends, {ENDS_CTX} tokens", f"{plan.bits_with_ends(plan.model, ENDS_CTX):.3f}"))
    if isinstance(kld := facts.get("kld_mean"), float):
        error = facts.get("kld_se")
        figures.append(("mean KLD, held-out text", with_error(kld, error if isinstance(error, float) else None)))
    if isinstance(top := facts.get("same_top"), float):
        figures.append(("same most likely token", f"{top:.2f} %"))
    tiles = [element("div", element("b", value), element("span", what), class_="tile") for what, value in figures]
    return element("div", *tiles, class_="tiles")
