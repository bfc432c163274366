#!/usr/bin/env python3
"""Is a fact found in a long text? Greedy answers of the torch reference over the caches of plans.

  needle.py MODEL.gguf --plan none --plan plan.json --at 8192 --at 32768 --depth 10 --depth 90 --repeat 5

One sentence gives the access code of a name, so many percent into so many tokens of an encyclopedia, which a question
for the code ends. It is found where the next tokens have its digits. Every plan is asked the same questions.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from incremental import Decoder
from outputs import output_file

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.files.assets import JUDGING_TEXT, fetch_text
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.pairs import EXACT
from kvtuner_gguf.plan.plan import Plan

N_ANSWER = 8
N_DIGITS = 5
SENTENCE_END = re.compile(r"(?<=\.)(?= )|(?<=\n)")
FIRST_NAMES = ("Alba", "Boris", "Carla", "Davit", "Elena", "Farid", "Greta", "Hugo", "Irina", "Jonas", "Kaja", "Lorenz")
LAST_NAMES = ("Adler", "Bianchi", "Cermak", "Duval", "Eriksen", "Fuchs", "Garcia", "Horvat", "Ivanov", "Jansen", "Kunz")

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class Needle:
    """A name and its code."""

    name: str
    code: str

    @classmethod
    def made_up(cls, chance: random.Random) -> Needle:
        name = f"{chance.choice(FIRST_NAMES)} {chance.choice(LAST_NAMES)}"
        return cls(name, "".join(chance.choice("0123456789") for _ in range(N_DIGITS)))

    @property
    def fact(self) -> str:
        return f" The access code of {self.name} is {self.code}."

    @property
    def question(self) -> str:
        name = self.name
        return f"\n\nQuestion: What is the access code of {name}?\nAnswer: The access code of {name} is"


def prompt(needle: Needle, tokenize: Tokenize, text: str, n_tokens: int, depth: float) -> list[int]:
    """``n_tokens`` of ``text`` with the fact at the end of the sentence ``depth`` percent into it, and the question.

    Raises `KvtunerError` where the text is too short.
    """
    fact, question = tokenize(needle.fact), tokenize(needle.question)
    n_text = n_tokens - len(fact) - len(question)
    before, hay = None, []
    for sentence in map(tokenize, SENTENCE_END.split(text)):
        if before is None and len(hay) + len(sentence) > n_text * depth / 100:
            before = len(hay)
        hay += sentence
        if len(hay) >= n_text:
            return hay[:before] + fact + hay[before:n_text] + question
    raise KvtunerError(f"the text has {len(hay)} tokens, a prompt of {n_tokens} takes {n_text}: give a smaller --at")


@dataclass(frozen=True)
class Answer:
    """Of one plan; ``at`` is the length of the prompt in tokens."""

    plan: str
    at: int
    depth: float
    needle: Needle
    answer: str

    @property
    def found(self) -> bool:
        return self.needle.code in self.answer


def ask(decoder: Decoder, plans: dict[str, Plan], at: int, depth: float, chance: random.Random) -> list[Answer]:
    """One question to all plans."""
    text, needle = fetch_text(JUDGING_TEXT).read_text(encoding="utf-8"), Needle.made_up(chance)
    start = text.index("\n", chance.randrange(len(text) // 2)) + 1
    tokens = torch.tensor(prompt(needle, decoder.tokenize, text[start:], at, depth))
    answers = []
    for name, plan in plans.items():
        decoder.begin(plan, at + N_ANSWER)
        answers.append(Answer(name, at, depth, needle, decoder.text(decoder.greedy(tokens, N_ANSWER))))
    return answers


def table(answers: Iterable[Answer]) -> str:
    """Found of asked: a row for each plan, a column for each length and depth."""
    answers = list(answers)
    columns = sorted({(a.at, a.depth) for a in answers})
    lines = ["plan".ljust(36) + "".join(f"{at} {depth:g} %".rjust(12) for at, depth in columns) + "all".rjust(10)]
    for plan in dict.fromkeys(a.plan for a in answers):
        own = [a for a in answers if a.plan == plan]
        cells = [_share(a for a in own if (a.at, a.depth) == column).rjust(12) for column in columns]
        lines.append(plan.ljust(36) + "".join(cells) + _share(own).rjust(10))
    return "\n".join(lines)


def _share(answers: Iterable[Answer]) -> str:
    found = [a.found for a in answers]
    return f"{sum(found)}/{len(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--plan", action="append", required=True, help="PLAN.json, or none for exact caches; repeatable"
    )
    parser.add_argument("--at", action="append", type=int, help="tokens of a prompt, repeatable  [default: 8192]")
    parser.add_argument("--depth", action="append", type=float, help="percent, repeatable  [default: 10, 50 and 90]")
    parser.add_argument("--repeat", type=int, default=3, help="questions for each length and depth  [default: 3]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=output_file, help="write all answers to this file, too")
    args = parser.parse_args()
    shape = model_shape(read_model(args.model))
    exact = Plan.uniform(EXACT, shape.n_layer)
    plans = {name: exact if name == "none" else Plan.load(Path(name)) for name in args.plan}
    for plan in plans.values():
        plan.check(shape)
    decoder = Decoder(args.model, shape.architecture, args.device)
    answers: list[Answer] = []
    for at in args.at or (8192,):
        for depth in args.depth or (10, 50, 90):
            for i in range(args.repeat):
                asked = ask(decoder, plans, at, depth, random.Random(f"{args.seed} {at} {depth} {i}"))
                for a in asked:
                    print(
                        f"{a.at:6} {a.depth:4g} %  {a.needle.code}  {a.found!s:5}  {a.plan}: {a.answer!r}", flush=True
                    )
                answers += asked
    print(table(answers))
    if args.json:
        rows = [{**asdict(answer), "found": answer.found} for answer in answers]
        atomicfile.write_text(args.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
