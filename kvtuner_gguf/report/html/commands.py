"""The commands that make a plan and its page again, from what the plan says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.measured import measuring_options
from kvtuner_gguf.report.shell import annotated, annotating, next_command, serving, shell_command

# how a goal reads in provenance, and the options that give it
_GOALS = (
    (re.compile(r"([\d.e+-]+) bits per value(?: for (\d+) tokens)?"), "--bits"),
    (re.compile(r"([\d.e+-]+) MiB(?: for (\d+) tokens)?"), "--mib"),
    (re.compile(r"a mean KLD of ([\d.e+-]+)"), "--max-kld"),
)


def commands(plan: Plan, name: str, model: str | None) -> list[str]:
    """One line each, quoted for a shell; ``name`` is the plan's file, without ``model`` a name stands for it."""
    if name.endswith(".gguf"):
        return _of_annotated(plan, name)
    model, cfg = model or "model.gguf", name
    work = f"{cfg.removesuffix('.json')}.tune"
    tuned = [_tune(plan, model, cfg)] if "goal" in plan.provenance else []
    shown = ["report", cfg, *([work] if tuned else []), "eval.json", "bench.json", "-o", "report.html"]
    return [
        *tuned,
        annotating(Path(model), Path(cfg)),
        serving(annotated(Path(model))),
        _judge(plan, model, cfg, "--config", cfg),
        shell_command("llama-bench", "-m", model, "-fa", "1", "--kv-config", f"none,{cfg}", "-o", "json")
        + " > bench.json",
        next_command(*shown),
    ]


def _of_annotated(plan: Plan, model: str) -> list[str]:
    """What can be done with a model that has ``plan`` in it, which does not tell how it was made."""
    shown = next_command("report", model, "eval.json", "-o", "report.html")
    return [serving(Path(model)), _judge(plan, model, model), shown]


def _judge(plan: Plan, model: str, centered: str, *judged: str) -> str:
    """Beside what is ``judged`` uniform pairs, with the ends and centers of ``plan``, which ``centered`` has."""
    words = [*judged, "--uniform", "q8_0", "--uniform", "q4_0"]
    words += [] if plan.centers is None else ["--centers", centered]
    words += [] if plan.ends is None else ["--ends", str(plan.ends)]
    return next_command("eval", model, *words, "--json") + " > eval.json"


def _tune(plan: Plan, model: str, cfg: str) -> str:
    facts = plan.provenance
    words = ["tune", model, "-o", cfg, *_goal(str(facts["goal"]))]
    words += ["--ends", "none" if plan.ends is None else str(plan.ends)]
    words += measuring_options(facts)
    words += ["--for-ctx", str(facts["for_ctx"])] if "for_ctx" in facts else []
    return next_command(*words, *_choices(facts))


def _goal(goal: str) -> list[str]:
    for pattern, option in _GOALS:
        if found := pattern.fullmatch(goal):
            return [option, found[1]]
    return []


def _choices(facts: Mapping[str, Any]) -> list[str]:
    """Options for what is not as `tune` has it by default."""
    words: list[str] = []
    if isinstance(names := facts.get("candidates"), list):
        words += ["--candidates", ",".join(map(str, names))]
    for key, usual in (
        ("engine", None),
        ("method", "exact"),
        ("objective", "kld"),
        ("device", "cpu"),
        ("prices", None),
    ):
        if facts.get(key) not in (None, usual):
            words += [f"--{key}", str(facts[key])]
    if isinstance(fixed := facts.get("fixed"), Mapping):
        words += [word for il, pair in fixed.items() for word in ("--fix", f"{il}={pair}")]
    return words if "keys" in facts else [*words, "--no-center"]
