#!/usr/bin/env python3
"""Speed of plans on a GPU as ratios to f16 of the unpatched base, in one run of both builds.

  bench_cuda.py --shape llama-3.1-8b --depth 0,8192,65536

The unpatched build is made like the one of `make build BACKEND=cuda` first, unless --base and --patched name folders.
Models of these shapes have random weights and are made first, in --folder. Each row is a cache: "base" is f16 without a
plan in the unpatched build, "base:q8_0/q8_0" such types there, "paper" the published table of KVTuner for Llama-3.1-8B,
others are K/V of all layers. A row with ends, as q4_0/q4_0+4+128, keeps the first 4 and the last 128 positions exact,
in f16 or in a type that comes last: q4_0/q4_0+4+128+q8_0.
The base runs first and last.
Beside tokens per second and the ratio to the base stand the GB/s at which decode steps read the cache, weights not
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from both_builds import both_builds, compile_both
from paper_plan import paper_plan
from synthetic_models import SHAPES, Shape, write_model

from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

BASE = "base"
TRIES = 8  # upstream's log may end before its last line is written, more so where a run is short
SHORT = 4  # times as many repetitions where they are short: at depth 0
N_BATCHED = 128  # tokens of each sequence: the first step takes as long as some
Speeds = dict[str, float]  # tokens per second, by column


def plan_named(name: str, n_layer: int) -> Plan:
    pair, *ends = name.split("+")
    plan = paper_plan(n_layer) if pair == "paper" else Plan.uniform(Pair.parse(pair), n_layer)
    return replace(plan, ends=Ends(int(ends[0]), int(ends[1]), ends[2] if ends[2:] else "f16")) if ends else plan


def build_both(jobs: int) -> tuple[Path, Path]:
    """Where the programs of the unpatched and of the patched build are, once they are compiled."""
    unpatched, patched = both_builds("cuda")
    compile_both(unpatched, patched, jobs, ["tools/llama-bench", "tools/batched-bench"])
    return unpatched.programs, patched.programs


def run(command: Sequence[str | Path]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stdout


def bench(folder: Path, model: Path, args: argparse.Namespace, options: Sequence[str | Path]) -> Speeds:
    """Decode of one sequence and prefill, at each depth: medians of repetitions, of which the first is often slow."""
    found: Speeds = {}
    for depths, repetitions in depth_groups(args.depth, args.repetitions):
        sizes = ("-p", args.n_prompt, "-n", args.n_gen, "-d", depths, "-r", repetitions)
        command = (folder / "llama-bench", "-m", model, "-ngl", 99, "-fa", 1, "-o", "json", *sizes, *options)
        for row in json.loads(run(command)):
            found[f"{'pp' if row['n_prompt'] else 'tg'} @{row['n_depth']}"] = median(map(float, row["samples_ts"]))
    return found


def depth_groups(depths: str, repetitions: int) -> list[tuple[str, int]]:
    """Depth 0 with more repetitions, which are short there, and the others; of ``depths`` with commas between."""
    named = depths.split(",")
    short, others = [d for d in named if d == "0"], [d for d in named if d != "0"]
    groups = [(",".join(short), SHORT * repetitions), (",".join(others), repetitions)]
    return [group for group in groups if group[0]]


def bench_batched(folder: Path, model: Path, batch: str, options: Sequence[str | Path]) -> Speeds:
    """Decode of many sequences at once: "32x4096" are 32 of 4096 tokens."""
    n_seq, n_tokens = map(int, batch.split("x"))
    sizes = ("-npp", n_tokens, "-ntg", N_BATCHED, "-npl", n_seq, "-c", n_seq * (n_tokens + 2 * N_BATCHED))
    common = ("-m", model, "-ngl", 99, "-fa", "on", "--output-format", "jsonl")
    for _ in range(TRIES):
        lines = run((folder / "llama-batched-bench", *common, *sizes, *options)).splitlines()
        for line in lines:
            if line.startswith("{"):
                return {batch: float(json.loads(line)["speed_tg"])}
    sys.exit(f"llama-batched-bench has printed no result for {batch} in {TRIES} runs")


def options_of(args: argparse.Namespace, name: str, n_layer: int) -> tuple[Path, Sequence[str | Path]]:
    """The folder of the programs that have a cache, and what makes them have it."""
    if name.startswith(BASE):
        pair = pair_of_base(name)
        return args.base, ("-ctk", pair.k, "-ctv", pair.v)
    config = args.folder / f"{re.sub(r'[^a-z0-9_+]', '-', name)}-{n_layer}.json"
    plan_named(name, n_layer).save(config)
    return args.patched, ("--kv-config", config)


def pair_of_base(name: str) -> Pair:
    return Pair.parse(name.partition(":")[2] or "f16/f16")


def speeds(args: argparse.Namespace, model: Path, name: str, n_layer: int) -> Speeds:
    folder, options = options_of(args, name, n_layer)
    found = bench(folder, model, args, options)
    for batch in args.batch:
        found |= bench_batched(folder, model, batch, options)
    return found


def cache_rate(column: str, speed: float, bytes_per_token: float) -> float | None:
    """Bytes of the cache that are read per second by a decode of ``speed`` tokens; None for a prefill."""
    if column.startswith("pp"):
        return None
    n_tokens = column.removeprefix("tg @") if column.startswith("tg") else column.partition("x")[2]
    return speed * int(n_tokens) * bytes_per_token


def print_row(name: str, found: Speeds, base: Speeds, shape: Shape) -> None:
    plan = plan_named(str(pair_of_base(name)) if name.startswith(BASE) else name, shape.n_layer)
    cells = []
    for key, value in found.items():
        rate = cache_rate(key, value, plan.bits_per_value() / 8 * shape.n_values)
        shown = f", {rate / 1e9:.0f} GB/s" if rate else ""
        cells.append(f"{key} {value:.1f} ({value / base[key]:.3f}{shown})")
    print(f"  {name:<22} {'   '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder with the unpatched build's tools")
    parser.add_argument("--patched", type=Path, help="folder with this build's tools")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel compile jobs")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where models and plans go")
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="default: llama-3.1-8b")
    parser.add_argument("--cache", action="append", help="paper+4+128, base:q8_0/q8_0, ... (default: four plans)")
    parser.add_argument("--depth", default="0,8192,32768,65536")
    parser.add_argument("--batch", action="append", default=[], help="sequences x tokens, as 32x4096")
    parser.add_argument("--n-prompt", type=int, default=512)
    parser.add_argument("--n-gen", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    if (args.base is None) != (args.patched is None):
        parser.error("give both --base and --patched, or neither")
    if args.base is None:
        args.base, args.patched = build_both(args.jobs)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.shape or ["llama-3.1-8b"]:
        model = args.folder / f"{name}.gguf"
        if not model.exists():
            write_model(SHAPES[name], model)
        shape = SHAPES[name]
        print(name, flush=True)
        base = speeds(args, model, BASE, shape.n_layer)
        print_row(BASE, base, base, shape)
        for cache in args.cache or ["paper+4+128", "q4_0/q4_0", "q8_0/q8_0", "f16/f16"]:
            print_row(cache, speeds(args, model, cache, shape.n_layer), base, shape)
        again = speeds(args, model, BASE, shape.n_layer)
        print_row(BASE, again, base, shape)


if __name__ == "__main__":
    main()
