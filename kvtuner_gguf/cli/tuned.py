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


def print_tuned_json(out: Path, tuned: Tuned, native: Row | None) -> None:
    from dataclasses import asdict

    from kvtuner_gguf.report.plans import plan_to_json

    rows = [tuned.row] if native is None else [tuned.row, native]
    facts = {"payload_bits": tuned.plan.payload_bits(), "fast_on": _fast_on(tuned)}
    facts |= {name: getattr(tuned, name) for name in ("loss_tuning", "loss_tuning_se", "noise_floor")}
    data = {"file": str(out), **facts, **plan_to_json(tuned.plan)}
    judged = {"reasons": _reasons(tuned), "held_out": list(map(asdict, rows))}
    click.echo(json.dumps({**data, **judged, "front": tuned.front.to_json()["points"]}, indent=1))


def save_tuned_page(html: Path, model: Path, out: Path, tuned: Tuned, native: Row | None) -> None:
    """The report of ``tuned``, whose plan is in ``out``."""
    from kvtuner_gguf.report.html.findings import Findings
    from kvtuner_gguf.report.html.page import save_page

    rows = {"held-out text": [tuned.row] if native is None else [tuned.row, native]}
    prices = [] if tuned.prices is None else [tuned.prices]
    save_page(Findings({out.name: tuned.plan}, {"front": tuned.front}, prices, rows, model=model.name), html)


def print_judged(tuned: Tuned, native: Row) -> None:
    """What the built llama.cpp makes of the plan."""
    from kvtuner_gguf.report.table import print_rows

    print_rows([tuned.row, native], "the same text in llama.cpp")
    click.echo(f"the two differ by {abs(native.kld_mean - tuned.row.kld_mean):.5f} in mean KLD")


def print_tuned(out: Path, tuned: Tuned) -> None:
    from kvtuner_gguf.report.fronts import print_front
    from kvtuner_gguf.report.numbers import with_error
    from kvtuner_gguf.report.plans import plan_summary
    from kvtuner_gguf.report.table import print_rows

    why = _reasons(tuned)
    print_front(tuned.front, tuned.plan)
    title = f"held-out text, {len(tuned.held_out)} x {len(tuned.held_out[0])} tokens, against the f16 cache"
    print_rows([tuned.row], title)
    click.echo(f"{out}\n{plan_summary(tuned.plan)}")
    if text := _windows(tuned):
        click.echo(text)
    if tuned.noise_floor is not None:
        loss = with_error(tuned.loss_tuning, tuned.loss_tuning_se)
        click.echo(f"KLD {loss} on the tuning text, noise floor {tuned.noise_floor:.1g}")
    click.echo(f"runs fast on {', '.join(_fast_on(tuned)) or 'no back end: name one with --backend'}")
    for text in why[:SHOWN_REASONS]:
        click.echo(text)
    if len(why) > SHOWN_REASONS:
        click.echo(f"and {len(why) - SHOWN_REASONS} more: see --json")


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
