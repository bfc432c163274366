#!/usr/bin/env python3
"""Load one server with a mixed plan, and hold its answers against those of the same requests alone.

Attention over quantized rows goes row by row, whatever the batch: with a plan of quantized types every answer must be
the same. Over f16 rows the CPU sums in tiles, in another order where a prompt's beginning is reused, so that answers
part now and then with an f16 cache, and with a plan that has f16 layers; how often is measured in the same way.
Everything stays on this machine.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.server.llama_server import Server, running_server

PLANS = {
    "quantized": ("q8_0", "q8_0/q4_0", "q5_1/q4_0", "q4_0"),
    "with f16": ("f16", "q8_0", "q8_0/q4_0", "q4_0"),
}
EQUAL = "quantized"  # the plan whose answers must all be the same
N_LAYER = 30
N_SLOTS = 8
N_CTX = N_SLOTS * 512
# small, so that the prompts it keeps in memory reach their limit early
CACHE_MIB = 16
# of 200 answers at a share of 0.8, two standard deviations of the difference of two shares
SHARE_TOLERANCE = 0.08
# the allocator's own unrest
RSS_TOLERANCE_MIB = 8.0

SENTENCES = (
    "The harbour lies in the north of the island, where the ships wait for the morning tide.",
    "A baker in the old town makes three kinds of bread, and sells them before noon.",
    "In winter the river freezes, and the children walk to school across the ice.",
    "The library keeps its maps in wide drawers, sorted by the year in which they were drawn.",
    "Every engine of the line was built in the same workshop and carries a brass number.",
    "The gardener plants beans beside the wall because it holds the warmth of the day.",
    "Two astronomers measured the same comet and wrote down different distances.",
    "When the market closes, the square belongs to the pigeons and to a man with a violin.",
)
ENDINGS = (
    "The next day",
    "Question: where is the harbour? Answer:",
    "In one sentence, the story is about",
    "The capital of France is Paris. The capital of Italy is",
    "1, 2, 3, 4,",
    "She opened the door and said",
    "def add(a, b):",
)


@dataclass(frozen=True)
class Request:
    prompt: str
    n_predict: int


@dataclass(frozen=True)
class Outcome:
    """One server under load against the same requests alone."""

    name: str
    equal_share: float
    rss_mib: tuple[float, ...]  # after each answer
    exit_status: int
    errors: tuple[str, ...]

    @property
    def rss_growth_mib(self) -> float:
        """How far the second half of the answers went above the middle."""
        second_half = self.rss_mib[len(self.rss_mib) // 2 :]
        return max(second_half) - second_half[0]


def make_requests(count: int, seed: int) -> list[Request]:
    """Prompts of 1 to 19 sentences; three of four share their beginning with others."""
    rng = random.Random(seed)
    shared = [" ".join(rng.choices(SENTENCES, k=k)) for k in (2, 4, 8, 16)]
    return [make_request(rng, shared) for _ in range(count)]


def make_request(rng: random.Random, shared: Sequence[str]) -> Request:
    start = rng.choice(shared) if rng.random() < 0.75 else rng.choice(SENTENCES)
    middle = rng.choices(SENTENCES, k=rng.randrange(4))
    return Request(" ".join((start, *middle, rng.choice(ENDINGS))), rng.choice((4, 8, 16, 32)))


def options(plan: Path | None) -> list[str]:
    fixed = ["--parallel", str(N_SLOTS), "-fa", "on", "--cache-ram", str(CACHE_MIB)]
    return [*fixed, "--kv-config", str(plan or "none")]


def rss_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def under_load(server: Server, requests: Sequence[Request]) -> tuple[list[str], list[float]]:
    """The answers of all slots at once, and the server's memory after each."""

    def ask(request: Request) -> tuple[str, float]:
        return server.complete(request.prompt, request.n_predict, cache_prompt=True), rss_mib(server)

    with ThreadPoolExecutor(N_SLOTS) as pool:
        answers, memory = zip(*pool.map(ask, requests), strict=True)
    return list(answers), list(memory)


def alone(server: Server, requests: Sequence[Request]) -> list[str]:
    return [server.complete(r.prompt, r.n_predict, cache_prompt=False) for r in requests]


def soak(name: str, model: Path, plan: Path | None, requests: Sequence[Request]) -> Outcome:
    with running_server(model, n_ctx=N_CTX, options=options(plan)) as server:
        found, memory = under_load(server, requests)
        status, errors = server.interrupt(), server.errors
    with running_server(model, n_ctx=N_CTX, options=options(plan)) as server:
        expected = alone(server, requests)
    equal = sum(a == b for a, b in zip(found, expected, strict=True))
    return Outcome(name, equal / len(requests), tuple(memory), status, tuple(errors))


def problems(outcomes: Sequence[Outcome], yardstick: Outcome) -> list[str]:
    """The bars that are missed."""
    return [problem for outcome in outcomes for problem in problems_of(outcome, yardstick.equal_share)]


def problems_of(outcome: Outcome, yardstick: float) -> list[str]:
    found = []
    bar = 1.0 if outcome.name == EQUAL else yardstick - SHARE_TOLERANCE
    if outcome.equal_share < bar:
        found.append(f"{outcome.equal_share:.1%} of the answers are equal, the bar is {bar:.1%}")
    if outcome.rss_growth_mib > RSS_TOLERANCE_MIB:
        found.append(f"the memory grows by {outcome.rss_growth_mib:.1f} MiB in the second half")
    if outcome.exit_status:
        found.append(f"the exit status after SIGINT is {outcome.exit_status}")
    found += [f"the log has an error: {line}" for line in outcome.errors]
    return [f"{outcome.name}: {text}" for text in found]


def print_table(outcomes: Sequence[Outcome]) -> None:
    print(
        f"{'cache':<10} {'equal to alone':>14} {'RSS MiB, middle':>16} {'growth after':>13} {'exit':>5} {'errors':>7}"
    )
    for o in outcomes:
        middle = o.rss_mib[len(o.rss_mib) // 2]
        print(
            f"{o.name:<10} {o.equal_share:>14.1%} {middle:>16.1f} {o.rss_growth_mib:>13.1f} {o.exit_status:>5} "
            f"{len(o.errors):>7}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PLANS, help="this plan alone, without the f16 cache")
    args = parser.parse_args()
    requests = make_requests(args.requests, args.seed)
    try:
        outcomes = run(requests, [args.only] if args.only else list(PLANS), with_f16=not args.only)
    except KvtunerError as err:
        sys.exit(f"error: {err}")
    print_table(outcomes)
    missed = problems(outcomes, yardstick=outcomes[0])
    sys.exit("\n".join(missed) if missed else None)


def run(requests: Sequence[Request], names: Sequence[str], with_f16: bool) -> list[Outcome]:
    model = fetch_model("smollm2-135m")
    outcomes = [soak("f16", model, None, requests)] if with_f16 else []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            pairs = [Pair.parse(text) for text in PLANS[name]]
            path = Path(folder) / "plan.json"
            Plan(tuple(pairs[il % len(pairs)] for il in range(N_LAYER))).save(path)
            outcomes.append(soak(name, model, path, requests))
    return outcomes


if __name__ == "__main__":
    main()
