"""The parts of a page, each empty where there is nothing that it could show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvtuner_gguf.errors import about
from kvtuner_gguf.evaluation.rows import Row
from kvtuner_gguf.plan.front import Front
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.pairs import F16
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.report.html.barlist import Bar, bar_list
from kvtuner_gguf.report.html.charts import front_chart, key_chart, row_chart
from kvtuner_gguf.report.html.commands import commands
from kvtuner_gguf.report.html.findings import Findings
from kvtuner_gguf.report.html.heatmap import heat_map
from kvtuner_gguf.report.html.markup import Markup, element, joined, note, section, table
from kvtuner_gguf.report.html.speeds import Speed
from kvtuner_gguf.report.memory import LENGTHS, CacheSize, cache_sizes
from kvtuner_gguf.report.numbers import with_error
from kvtuner_gguf.report.plans import plan_summary


def layers(found: Findings) -> Markup:
    """The heat map of each plan."""
    parts = []
    for name, plan in found.plans.items():
        prices = found.prices_of(plan)
        hint = "" if prices is not None else note("What types cost is in the folder of a tuning: give that, too.")
        parts.append(_titled(name, heat_map(plan, prices), element("pre", plan_summary(plan)), hint))
    told = note(
        "Each row is a layer. A price is the mean KLD, in nats per token, of a model in which that side of that layer "
        "alone has its type."
    )
    return section("Types by layer", *(([told] if found.prices else []) if parts else []), *parts)


def fronts(found: Findings) -> Markup:
    """A chart for each model and measure that fronts are of."""
    groups: dict[tuple[ModelShape, str], dict[str, Front]] = {}
    for name, front in found.fronts.items():
        groups.setdefault((front.model, front.measure), {})[name] = front
    charts = [chart for group in groups.values() if (chart := front_chart(group, found.plans))]
    told = note(
        "Lower is better, further left is smaller. Bits count exact ends and tables of centers. Both axes go by ratios."
    )
    return section("Front", told, *charts) if charts else Markup("")


def judged(found: Findings) -> Markup:
    """The rows of each result of `eval`, drawn and listed."""
    parts = [_titled(name, row_chart(rows), _row_table(rows)) for name, rows in found.rows.items()]
    return section("Judged on other text", *parts)


def _row_table(rows: Iterable[Row]) -> Markup:
    head = ("cache K/V", "KLD mean", "with ends", "bits", "MiB", "same top %", "PPL ratio", "kind")
    return table(head, [_cells(row) for row in rows], "numbers")


def _cells(row: Row) -> tuple[str, ...]:
    size = (f"{row.bits_with_ends:.2f}", f"{row.bits_per_value:.2f}", f"{row.kv_mib:.2f}")
    kld = with_error(row.kld_mean, row.kld_se)
    return (row.name, kld, *size, f"{row.same_top:.2f}", f"{row.ppl_ratio:.4f}", row.kind)


def memory(found: Findings) -> Markup:
    """What the caches of f16, q8_0 and each plan take in contexts of one sequence."""
    parts = []
    for name, plan in found.plans.items():
        if plan.model is not None:
            sizes = cache_sizes(plan, plan.model)
            groups = [(f"{n_ctx // 1024}k tokens", _sizes(sizes, i)) for i, n_ctx in enumerate(LENGTHS)]
            parts.append(_titled(name, bar_list(groups, "MiB of caches by context length")))
    told = note("MiB that a context of one sequence allocates, exact ends and tables of centers included.")
    return section("Memory by context length", told, *parts) if parts else Markup("")


def _sizes(sizes: Sequence[CacheSize], i: int) -> list[Bar]:
    """A bar for each cache in the context that has number ``i``."""
    styles = {"f16": "is-uniform", "q8_0": "is-centered"}
    shares = [one.n_bytes[i] / (sizes[0].n_bytes[i] or 1) for one in sizes]
    return [
        Bar(one.name, share, f"{one.n_bytes[i] / 2**20:,.1f} MiB, {share:.0%}", styles.get(one.name, "is-plan"))
        for one, share in zip(sizes, shares, strict=True)
    ]


def centering(found: Findings) -> Markup:
    """How far keys reach before and after, for each plan that says so."""
    parts = []
    for name, plan in found.plans.items():
        if "keys" in plan.provenance:
            with about(name):
                spread = KeySpread.from_json(plan.provenance["keys"])
            parts.append(_titled(name, key_chart(spread)))
    told = note("How far the keys of each layer reach before and after what they have in common is taken off.")
    return section("Keys before and after centering", told, *parts) if parts else Markup("")


def speed(found: Findings) -> Markup:
    """Tokens per second of each test, caches side by side."""
    by_test: dict[str, list[Speed]] = {}
    for one in found.speeds:
        by_test.setdefault(f"{one.test}, {one.model}", []).append(one)
    groups = []
    for title, speeds in by_test.items():
        most = max(one.tokens_per_second for one in speeds) or 1
        groups.append((title, [_speed_bar(one, most) for one in speeds]))
    told = note("Tokens per second by llama-bench, with the standard deviation of its runs.")
    return section("Speed", told, bar_list(groups, "tokens per second")) if groups else Markup("")


def _speed_bar(one: Speed, most: float) -> Bar:
    style = "is-uniform" if one.cache == str(F16) else "is-plan"
    return Bar(one.cache, one.tokens_per_second / most, f"{one.tokens_per_second:.1f} ± {one.spread:.1f} t/s", style)


def provenance(found: Findings) -> Markup:
    """Where each plan comes from."""
    parts = []
    for name, plan in found.plans.items():
        facts = [(key, value) for key, value in _flat(plan.provenance) if not key.startswith("keys")]
        shape = [] if plan.model is None else [("model", f"{plan.model.architecture}, {plan.n_layer} layers")]
        rows = [("fingerprint", plan.fingerprint), *shape, *facts]
        parts.append(_titled(name, table(("fact", "value"), list(rows))))
    return section("Provenance", *parts)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key} ")
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            flat.append((f"{prefix}{key}", ", ".join(map(_said, values))))
    return flat


def _said(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def repeating(found: Findings) -> Markup:
    """The commands that make each plan again."""
    parts = []
    for name, plan in found.plans.items():
        lines = [_command_line(line) for line in commands(plan, name, found.model)]
        parts.append(_titled(name, element("pre", *lines)))
    return section("The commands", *parts)


def _command_line(line: str) -> Markup:
    """Broken between words alone: a hyphen begins an option."""
    words = [element("span", word, class_="word") for word in f"$ {line}".split(" ")]
    return joined(*(part for word in words for part in (word, " ")), "\n")


def _titled(name: str, *children: object) -> Markup:
    return element("article", element("h3", name), joined(*children))
