#!/usr/bin/env python3
"""How to choose centers: how many tokens, which text, which mean and which positions.

  study_centers.py MODEL.gguf --out centers.json

Every row is the mean KLD against the exact model, float32 torch, of one pair of types in all layers with one choice of
centers. Calibration texts and the text that judges are different, except where a row says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from outputs import output_file
from torch import Tensor

from kvtuner_gguf.engine.torch.judge import TorchJudge
from kvtuner_gguf.engine.torch.reference import Reference
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.files.assets import fetch_text
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.tuning.calibration import calibrate

TEXTS = ("web", "encyclopedia", "code", "multilingual")

Statistic = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values [batch, heads, tokens, head size] -> centers of keys [KV heads, head size]."""


def mean(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return k.double().mean((0, 2))


def median(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return k.transpose(1, 2).flatten(0, 1).median(0).values


def midrange(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Between the 1 % and the 99 % quantile."""
    rows = k.transpose(1, 2).flatten(0, 1)
    ends = torch.quantile(rows.flatten(1), torch.tensor([0.01, 0.99]), dim=0)
    return ends.mean(0).reshape(rows.shape[1:])


def weighted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mean weighted by what an error of the key does to the attention output o: (a |v - o| |q|) squared."""
    n_group = q.shape[1] // k.shape[1]
    total, weight = torch.zeros(k.shape[1], k.shape[3]).double(), torch.zeros(k.shape[1], 1).double()
    for chunk, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        kv = head // n_group
        w = _key_weights(q[chunk, head], k[chunk, kv], v[chunk, kv]).double()
        total[kv] += w @ k[chunk, kv].double()
        weight[kv] += w.sum()
    return total / weight


def _key_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head, all [tokens, channels]."""
    later = torch.ones(len(q), len(k), dtype=torch.bool).triu(1)
    a = (q @ k.T / k.shape[1] ** 0.5).masked_fill(later, -torch.inf).softmax(-1)
    o = a @ v
    distance = (v.square().sum(-1)[None] - 2 * o @ v.T + o.square().sum(-1)[:, None]).clamp_min(0)
    return (a.square() * distance * q.square().sum(-1)[:, None]).sum(0)


def centers_of(reference: Reference, tokens: Tensor, statistic: Statistic) -> Centers:
    found: list[np.ndarray] = []

    def measure(il: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        order = reference.cache.runtime_order
        found.append(statistic(order(query), order(key), value).numpy())

    reference.run(reference.embed(tokens), capture=measure)
    return Centers.from_arrays(found)


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

    def judge(self, text: str, n_ctx: int) -> TorchJudge:
        self.reference.cache = self.plain
        return TorchJudge(self.reference, self.tokens(text, n_ctx, n_ctx, seed=1)[1])

    def row(self, judge: TorchJudge, judged_on: str, pair: str, what: str, centers: Centers | None) -> None:
        start = time.monotonic()
        self.reference.cache = replace(self.plain, centers=centers)
        kld = judge.kld([Pair.parse(pair)] * self.reference.n_layer)
        self.reference.cache = self.plain
        row = {"judged_on": judged_on, "pair": pair, "centers": what, "kld": kld.mean().item()}
        self.rows.append(row)
        print(f"{judged_on:14} {pair:10} {what:40} {row['kld']:.5f}  ({time.monotonic() - start:.0f} s)", flush=True)


def means(study: Study, judge: TorchJudge, text: str) -> None:
    """What keys gain, by type and by how the mean is weighted."""
    plain = study.centers("web", 2048, 512)
    by_output = study.centers("web", 2048, 512, weighted)
    for pair in ("q8_0/f32", "q4_0/f32"):
        study.row(judge, text, pair, "none", None)
        study.row(judge, text, pair, "mean", plain)
        study.row(judge, text, pair, "weighted", by_output)
    study.row(judge, text, "q4_0/q4_0", "mean", plain)


def choices(study: Study) -> Iterator[tuple[str, Centers]]:
    """Centers of keys by text, number of tokens and statistic."""
    for n_tokens in (512, 2048, 8192):
        yield f"web, {n_tokens} tokens in chunks of 512", study.centers("web", n_tokens, 512)
    yield "web, 2048 tokens in one chunk", study.centers("web", 2048, 2048)
    yield "web, 2048 tokens, median", study.centers("web", 2048, 512, median)
    yield "web, 2048 tokens, middle of 1 and 99 %", study.centers("web", 2048, 512, midrange)
    for text in TEXTS[1:]:
        yield f"{text}, 2048 tokens in chunks of 512", study.centers(text, 2048, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=output_file, help="write the rows as JSON")
    parser.add_argument("--ctx", type=int, default=1024, help="tokens of the text that judges")
    parser.add_argument("--part", choices=("means", "choices"), action="append", help="default: both")
    args = parser.parse_args()
    study = Study(args.model)
    judge = study.judge("encyclopedia", args.ctx)
    parts = args.part or ["means", "choices"]
    if "means" in parts:
        means(study, judge, "encyclopedia")
    if "choices" in parts:
        for what, centers in choices(study):
            study.row(judge, "encyclopedia", "q4_0/f32", what, centers)
    if args.out:
        atomicfile.write_text(args.out, json.dumps(study.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
