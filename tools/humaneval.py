#!/usr/bin/env python3
"""Judge KV caches by HumanEval: 164 problems, one greedy answer to each, the share of programs that pass.

  humaneval.py MODEL.gguf --cache f16 --cache q8_0 --cache q4_0 --cache plan.json --parallel 8

f16 is the base's cache, without a plan. Another name, K/V or one for both, is a plan with this pair in all layers, not
centered; a file is a plan as it stands. An instruct model is asked in its chat format for the whole function in one
code block; with --raw any model continues the prompt. Answers are kept in files under --out, one per cache: an
interrupted run goes on, other settings are refused. With several slots sums over f16 caches come in another order now
and then, and some answers differ for it: --parallel 1 gives the same ones each time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sandbox
from humaneval_answers import collect
from humaneval_report import Row, print_table, rows_to_json
from humaneval_server import Cache, Setup
from humaneval_tasks import Answer, Chat, Raw, Task, fetch_tasks
from outputs import output_file

from kvtuner_gguf.engine.llama.native import default_threads
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.gguffile.fit import fitted
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.reader import GgufHeader
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.stages import step_progress
from kvtuner_gguf.server.llama_server import find_tool

F16 = Pair("f16", "f16")
Outcomes = dict[str, sandbox.Outcome]


def parse_caches(names: Sequence[str], headers: list[GgufHeader]) -> list[Cache]:
    """Raises `KvtunerError` for what is neither a pair nor a plan of this model, and for a cache given twice."""
    caches = [parse_cache(name, headers) for name in names]
    twice = [name for name, count in Counter(cache.name for cache in caches).items() if count > 1]
    if twice:
        raise KvtunerError(f"two caches are called {twice[0]}: give each once, and plans in files of different names")
    return caches


def parse_cache(name: str, headers: list[GgufHeader]) -> Cache:
    if Path(name).suffix == ".json":
        return Cache(Path(name).stem, fitted(Plan.load(Path(name)), headers))
    pair = Pair.parse(name)
    plan = None if pair == F16 else fitted(Plan.uniform(pair, model_shape(headers).n_layer), headers)
    return Cache(str(pair), plan)


def judge_all(setup: Setup, title: str, tasks: Sequence[Task], answers: Mapping[str, Answer]) -> Outcomes:
    """How the program of each answer ends, by the task's name."""

    def judge(task: Task) -> sandbox.Outcome:
        program = setup.mode.program(task, answers[task.id].text)
        return sandbox.judge(program, task.test, task.entry_point)

    outcomes: Outcomes = {}
    with step_progress(f"{title}: programs") as progress, ThreadPoolExecutor(setup.n_threads) as pool:
        for task, outcome in zip(tasks, pool.map(judge, tasks), strict=True):
            outcomes[task.id] = outcome
            progress(len(outcomes), len(tasks))
    return outcomes


def run(setup: Setup, caches: Sequence[Cache], tasks: Sequence[Task], out: Path) -> list[Row]:
    shape = model_shape(read_model(setup.model))
    rows = []
    for cache in caches:
        path = out / f"{setup.model.stem}.{setup.mode.name}.{cache.name.replace('/', '-')}.jsonl"
        answers = collect(setup, cache, tasks, path)
        outcomes = judge_all(setup, cache.name, tasks, answers)
        rows.append(Row(cache.name, cache.bits_per_value(shape), answers, outcomes))
    return rows


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--cache", action="append", required=True, help="K/V or a plan's JSON file; repeatable")
    parser.add_argument("--raw", action="store_true", help="continue the prompt instead of chatting")
    parser.add_argument("--tasks", type=positive, help="the first N problems alone  [all]")
    parser.add_argument("--n-predict", type=positive, default=512, help="tokens of an answer at most  [512]")
    parser.add_argument("--parallel", "-np", type=positive, default=1, help="slots of the server  [1]")
    parser.add_argument("--threads", type=positive, help="of the server, and programs run at once  [all processors]")
    parser.add_argument("--server", type=Path, help="llama-server of the patched build  [the built one]")
    parser.add_argument("--server-options", default="", help="more of its command line, such as '-ngl 99'")
    parser.add_argument("--out", type=Path, default=Path("out/humaneval"), help="folder of answers  [out/humaneval]")
    parser.add_argument("--json", type=output_file, help="write the results to this file, too")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no count of 1 or more")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        sandbox.ensure_held()
        caches = parse_caches(args.cache, read_model(args.model))
        setup = Setup(
            program=args.server or find_tool("llama-server"),
            model=args.model,
            mode=Raw() if args.raw else Chat(),
            n_parallel=args.parallel,
            n_predict=args.n_predict,
            n_threads=args.threads or default_threads(),
            options=tuple(shlex.split(args.server_options)),
        )
        tasks = fetch_tasks()[: args.tasks]
        rows = run(setup, caches, tasks, args.out)
        if args.json:
            atomicfile.write_text(args.json, json.dumps(rows_to_json(rows), indent=1) + "\n")
    except KvtunerError as err:
        sys.exit(f"error: {err}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on with the answers that are kept")
    print_table(rows, f"{args.model.name}: {len(tasks)} tasks, {setup.mode.name}, at most {args.n_predict} tokens")


if __name__ == "__main__":
    main()
