"""What a tuning has found, on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kvtuner_gguf.evaluation.rows import Row
    from kvtuner_gguf.tuning.tuner import Tuned

# reasons that are printed; the others are in the prices
SHOWN_REASONS = 8


def print_tuned_json(out: Path, tuned: Tuned, native: Row | None, following: str) -> None:
    """``following`` is the command to type next."""
    from dataclasses import asdict

    from kvtuner_gguf.report.memory import cache_sizes
    from kvtuner_gguf.report.plans import plan_to_json

    rows = [tuned.row] if native is None else [tuned.row, native]
    facts = {"payload_bits": tuned.plan.payload_bits(), "fast_on": _fast_on(tuned)}
    facts |= {name: getattr(tuned, name) for name in ("loss_tuning", "loss_tuning_se", "noise_floor")}
    data = {"file": str(out), **facts, **plan_to_json(tuned.plan)}
    judged = {
        "reasons": _reasons(tuned),
        "held_out": list(map(asdict, rows)),
        "rivals": list(map(asdict, tuned.rivals)),
    }
    memory = [size.to_json() for size in cache_sizes(tuned.plan, tuned.front.model)]
    points = zip(tuned.front.to_json()["points"], tuned.front_se, strict=True)
    front = [{**point, "loss_se": error} for point, error in points]
    click.echo(json.dumps({**data, **judged, "memory": memory, "front": front, "next": [following]}, indent=1))


def save_tuned_page(html: Path, model: Path, out: Path, tuned: Tuned, native: Row | None) -> None:
    """The report of ``tuned``, whose plan is in ``out``."""
    from kvtuner_gguf.report.html.findings import Findings
    from kvtuner_gguf.report.html.page import save_page

    rows = {"held-out text": [tuned.row, *([] if native is None else [native]), *tuned.rivals]}
    prices = [] if tuned.prices is None else [tuned.prices]
    save_page(Findings({out.name: tuned.plan}, {"front": tuned.front}, prices, rows, model=model.name), html)


def print_judged(tuned: Tuned, native: Row) -> None:
    """What the built llama.cpp makes of the plan."""
    from kvtuner_gguf.report.rows import print_rows
    from kvtuner_gguf.report.terminal import print_text

    print_rows([tuned.row, native], "the same text in llama.cpp")
    print_text(f"the two differ by {abs(native.kld_mean - tuned.row.kld_mean):.5f} in mean KLD")


def print_tuned(out: Path, tuned: Tuned) -> None:
    from kvtuner_gguf.report.fronts import print_front
    from kvtuner_gguf.report.memory import print_cache_sizes
    from kvtuner_gguf.report.numbers import with_error
    from kvtuner_gguf.report.plans import plan_summary
    from kvtuner_gguf.report.rows import print_rows
    from kvtuner_gguf.report.terminal import print_text

    why = _reasons(tuned)
    print_front(tuned.front, tuned.plan, tuned.front_se)
    title = f"held-out text, {len(tuned.held_out)} x {len(tuned.held_out[0])} tokens, against the f16 cache"
    print_rows([tuned.row, *tuned.rivals], title)
    print_text("\n".join(_against(tuned)))
    print_cache_sizes(tuned.plan, tuned.front.model)
    click.echo(f"{out}")
    print_text(plan_summary(tuned.plan))
    if text := _windows(tuned):
        print_text(text)
    if tuned.noise_floor is not None:
        loss = with_error(tuned.loss_tuning, tuned.loss_tuning_se)
        print_text(f"KLD {loss} on the tuning text, noise floor {tuned.noise_floor:.1g}")
    print_text(f"runs fast on {', '.join(_fast_on(tuned)) or 'no back end: name one with --backend'}")
    print_text("\n".join(why[:SHOWN_REASONS]))
    if len(why) > SHOWN_REASONS:
        print_text(f"and {len(why) - SHOWN_REASONS} more: see --json")


def _against(tuned: Tuned) -> list[str]:
    """What the uniform pairs are, and how much more each loses than the plan."""
    row = tuned.row
    lines = [
        f"{other.name} loses {other.kld_mean / row.kld_mean:.2f} times what the plan does, with "
        f"{other.bits_with_ends:.3f} bits per value in place of {row.bits_with_ends:.3f}"
        for other in tuned.rivals
        if row.kld_mean > 0
    ]
    what = "uniform: one pair in all layers, with centers, scales and ends as the plan's; stock: as llama.cpp has it"
    return [what, *lines] if tuned.rivals else []


def _windows(tuned: Tuned) -> str | None:
    """Which layers are left at f16, and what they take."""
    from kvtuner_gguf.report.layers import ranges

    left, n_ctx = tuned.plan.provenance.get("windows"), tuned.plan.provenance.get("for_ctx")
    if left is None:
        return None
    share = f"{100 * left['share']:.1f} % of {left['of']} for {n_ctx} tokens"
    layers = f"layers {ranges(left['layers'])}, which have a sliding window, are left at f16"
    return f"{layers}: {share}; --windows search searches them, too"


def _fast_on(tuned: Tuned) -> list[str]:
    from kvtuner_gguf.plan.backends import running_fast

    return list(running_fast(tuned.plan.pairs))


def _reasons(tuned: Tuned) -> list[str]:
    from kvtuner_gguf.tuning.reasons import reasons

    if tuned.prices is None:
        return []
    facts = tuned.plan.provenance
    given = {*map(int, facts.get("fixed", {})), *facts.get("windows", {}).get("layers", ())}
    return reasons(tuned.plan.pairs, tuned.prices, given)
