#!/usr/bin/env python3
"""How to choose the centers: how many tokens, which text, mean or median, which positions, and whether values gain.

  study_centers.py MODEL.gguf --out centers.json

Every row is the mean KLD against the exact model, float32 torch, of one pair of types in all layers with one choice of
centers. Calibration texts and the text that judges are different, except where a row says so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kvtuner_gguf.assets import fetch_text
from kvtuner_gguf.cachetypes import Pair
from kvtuner_gguf.centers import Centers
from kvtuner_gguf.gguffile.shape import model_shape, read_model
from kvtuner_gguf.tuning.calibration import calibrate
from kvtuner_gguf.tuning.divergence import Judge
from kvtuner_gguf.tuning.reference import Reference

TEXTS = ("web", "encyclopedia", "code", "multilingual")
PAIRS = ("q8_0/f32", "q4_0/f32", "f32/q4_0", "q4_0/q4_0")

Statistic = Callable[[Tensor], Tensor]
"""[batch, KV heads, tokens, head size] -> [KV heads, head size]."""


def mean(x: Tensor) -> Tensor:
    return x.double().mean((0, 2))


def median(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1).median(0).values


def midrange(x: Tensor) -> Tensor:
    """Between the 1 % and the 99 % quantile."""
    rows = x.transpose(1, 2).flatten(0, 1).flatten(1).float()
    low, high = torch.quantile(rows, torch.tensor([0.01, 0.99]), dim=0)
    return ((low + high) / 2).reshape(x.shape[1], x.shape[3])


def centers_of(reference: Reference, tokens: Tensor, statistic: Statistic) -> Centers:
    keys, values = [], []

    def measure(il: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        keys.append(statistic(reference.cache.runtime_order(key)).numpy())
        values.append(statistic(value).numpy())

    for chunk in tokens.split(1):  # one chunk at a time would average medians: only for means
        if statistic is not mean:
            chunk = tokens
        reference.run(reference.embed(chunk), capture=measure)
        if statistic is not mean:
            break
    n = reference.n_layer
    average = lambda parts: [sum(parts[il::n]) / len(parts[il::n]) for il in range(n)]  # noqa: E731
    return Centers.from_arrays(average(keys), average(values))


def only_keys(centers: Centers) -> Centers:
    return Centers(centers.k, (b"",) * centers.n_layer)


class Study:
    """Rows of results; each is printed as it comes."""

    def __init__(self, model: Path) -> None:
        shape = model_shape(read_model(model))
        self.reference = Reference(model, shape.architecture)
        self.plain = self.reference.cache
        self.rows: list[dict] = []

    def tokens(self, text: str, n_tokens: int, n_ctx: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """For calibration and for judging, from different places."""
        texts = calibrate(fetch_text(text), self.reference.tokenize, n_tokens, n_ctx, seed)
        return texts.tuning, texts.held_out

    def centers(self, text: str, n_tokens: int, n_ctx: int, statistic: Statistic = mean) -> Centers:
        return centers_of(self.reference, self.tokens(text, n_tokens, n_ctx)[0], statistic)

    def judge(self, text: str, n_ctx: int) -> Judge:
        self.reference.cache = self.plain
        return Judge(self.reference, self.tokens(text, n_ctx, n_ctx, seed=1)[1])

    def row(self, judge: Judge, judged_on: str, pair: str, what: str, centers: Centers | None) -> None:
        start = time.monotonic()
        self.reference.cache = replace(self.plain, centers=centers)
        kld = judge.kld([Pair.parse(pair)] * self.reference.n_layer)
        self.reference.cache = self.plain
        row = {"judged_on": judged_on, "pair": pair, "centers": what, "kld": kld.mean().item()}
        self.rows.append(row)
        print(f"{judged_on:14} {pair:10} {what:40} {row['kld']:.5f}  ({time.monotonic() - start:.0f} s)", flush=True)


def choices(study: Study, quick: bool) -> Iterator[tuple[str, Centers | None]]:
    yield "none", None
    for n_tokens in (512, 2048) if quick else (512, 1024, 2048, 8192):
        yield f"web, {n_tokens} tokens in chunks of 512", study.centers("web", n_tokens, 512)
    yield "web, 2048 tokens in one chunk", study.centers("web", 2048, 2048)
    yield "web, 2048 tokens, median", study.centers("web", 2048, 2048, median)
    yield "web, 2048 tokens, middle of 1 and 99 %", study.centers("web", 2048, 2048, midrange)
    for text in TEXTS[1:]:
        yield f"{text}, 2048 tokens in one chunk", study.centers(text, 2048, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--ctx", type=int, default=1024, help="tokens of the text that judges")
    parser.add_argument("--quick", action="store_true", help="fewer rows")
    args = parser.parse_args()
    study = Study(args.model)
    judge = study.judge("encyclopedia", args.ctx)
    web = study.centers("web", 2048, 2048)
    for pair in PAIRS:
        study.row(judge, "encyclopedia", pair, "none", None)
        study.row(judge, "encyclopedia", pair, "keys: web, 2048", only_keys(web))
        study.row(judge, "encyclopedia", pair, "keys and values: web, 2048", web)
    for what, centers in choices(study, args.quick):
        study.row(judge, "encyclopedia", "q4_0/f32", what, centers and only_keys(centers))
    if args.out:
        args.out.write_text(json.dumps(study.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
