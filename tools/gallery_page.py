#!/usr/bin/env python3
"""The page docs/gallery.md, with the plans of configs/, out of the files.

gallery_page.py           writes it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.configs import CONFIGS
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.layers import pair_lines
from kvtuner_gguf.report.numbers import with_error

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
NO_PLANS = ("plan.schema.json", "tables.json")

HEAD = """<!-- Written by tools/gallery_page.py: run `make docs-pages` after a change of configs/. -->

# Plans that are there

The plans of the folder `configs/`, as their files have them. They travel in the Python package, too:
`kvtuner_gguf.CONFIGS` is the folder. A plan is for one model, and `annotate` refuses any other:

```sh
kvtuner-gguf annotate model.gguf configs/smollm2-135m-4.0.json --in-place
```

How they compare with uniform caches, with the tables of the paper and with what others do stands in
[configs/README.md](../configs/README.md), and [how to add one](adding-a-plan.md) on a page of its own.

## Searched and measured

*Bits* are true bits per value of the types, then with exact ends and tables of centers for that many tokens of one
sequence. *KLD* is the mean in nats per token against the f16 cache, *PPL* the ratio to its perplexity. Both are of
parts of the text that the search did not see, as many tokens as it was tuned on, in chunks of the same context; the
second half of each is scored."""

PAPER = """## From the paper

Tables of KVTuner (arXiv 2502.04420) as plans. They were not measured with these types and are not centered: judge one
with [`eval`](commands/eval.md) before use, and center it with [`center`](commands/center.md)."""


def page(folder: Path = CONFIGS) -> str:
    """The page of the plans in ``folder`` and in its folder ``kvtuner``."""
    searched = [_searched(model, plans) for model, plans in groupby(_plans(folder), lambda entry: _model(entry[0]))]
    return "\n\n".join([HEAD, *searched, PAPER, _paper(dict(_plans(folder / "kvtuner")))]) + "\n"


def _plans(folder: Path) -> list[tuple[Path, Plan]]:
    """By name, and those of a model by their bits."""
    paths = [path for path in folder.glob("*.json") if path.name not in NO_PLANS]
    found = [(path, Plan.load(path)) for path in paths]
    return sorted(found, key=lambda entry: (_model(entry[0]), entry[1].bits_per_value()))


def _model(path: Path) -> str:
    return path.stem.rpartition("-")[0]


def _searched(model: str, plans: Iterable[tuple[Path, Plan]]) -> str:
    found = list(plans)
    path, first = found[0]
    shape = first.model
    if shape is None:
        raise KvtunerError(f"{path} does not say which model it is for: tune it from a GGUF file")
    heads = f"{shape.architecture}, {shape.n_layer} layers, heads of {shape.head_dim_k} values"
    table = [
        "| plan | bits | in all, tokens | KLD | same top | PPL | text | tokens x context |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(path, plan) for path, plan in found),
    ]
    layers = [f"{path.stem}\n" + "\n".join(f"  {line}" for line in pair_lines(_by_layer(plan))) for path, plan in found]
    return "\n\n".join([f"### {model}", f"{heads}.", "\n".join(table), "```\n" + "\n\n".join(layers) + "\n```"])


def _by_layer(plan: Plan) -> dict[int, Pair]:
    return dict(enumerate(plan.pairs))


def _row(path: Path, plan: Plan) -> str:
    facts = plan.provenance
    n_chunks = facts["text_tokens"] // facts["n_ctx"]
    cells = [
        _link(path),
        f"{plan.bits_per_value():.3f}",
        f"{facts['bits_with_ends']:.3f}, {facts['for_ctx']}",
        with_error(facts["kld_mean"], facts.get("kld_se")),
        f"{facts['same_top']:.1f} %",
        f"x {facts['ppl_ratio']:.4f}",
        facts["text"],
        f"{n_chunks} x {facts['n_ctx']}",
    ]
    return f"| {' | '.join(cells)} |"


def _paper(plans: Mapping[Path, Plan]) -> str:
    lines = ["| plan | model | mode | bits in the paper | true bits |", "|---|---|---|---|---|"]
    for path, plan in plans.items():
        facts = plan.provenance
        bits = f"{facts['payload_bits']:.4f} | {plan.bits_per_value():.4f}"
        lines.append(f"| {_link(path)} | {facts['model']} | {facts['mode']} | {bits} |")
    return "\n".join(lines)


def _link(path: Path) -> str:
    place = "configs/kvtuner" if path.parent.name == "kvtuner" else "configs"
    return f"[{path.stem}](../{place}/{path.name})"


if __name__ == "__main__":
    PAGE.write_text(page())
