#!/usr/bin/env python3
"""What others do with the same bytes: losses of caches on an encyclopedia text, float32 torch.

  study_rivals.py MODEL.gguf --plan plan.json --device cuda --out rivals.json

Centers and rotations are of web text; the second half of each chunk is scored. A row gives what a cache takes in bits
of a value, exact ends included, at the context measured and at 8192, mean and median KLD against exact caches, how
often the likeliest token is the same, and perplexity as a multiple of that with exact caches. "First + last" are the
positions read exactly. Beside the types of this project:

  OSCAR  two bits in a calibrated rotation of keys and values, of the layer or of each KV head
  KVarN  tiles of 128 tokens in Hadamard's basis, balanced over channels and tokens
  tail   what BeeLlama keeps: the last 1024 positions, with KVarN the first 128, too
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from outputs import output_file
from rivals import Rotated, Statistics, Store, in_types, kvarn, kvarn_bits, oscar_bits, oscar_int2
from torch import Tensor

from kvtuner_gguf.engine.ends import KeysValues
from kvtuner_gguf.engine.rotation import hadamard
from kvtuner_gguf.engine.torch.reference import Reference
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.files.assets import JUDGING_TEXT, TUNING_TEXT, fetch_text
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.tuning.calibration import calibrate

SKIPPED = 0.5
ROWS = 256
LONG = 8192
OSCAR_ENDS, TAIL, KVARN_ENDS = Ends(64, 256), Ends(0, 1024), Ends(128, 1024)
OUR_ENDS = Ends(4, 128)
COLUMNS = ("bits", f"bits at {LONG}", "kld", "median", "same top", "ppl")


@dataclass(frozen=True)
class Rival:
    """A plan, or a ``store`` in a basis of its own of so many ``bits``, of which the plan gives the ends alone."""

    name: str
    plan: Plan
    rotations: tuple[KeysValues, ...] = ()
    store: Store | None = None
    bits: float = 0

    def true_bits(self, shape: ModelShape, n_ctx: int) -> float:
        """Of a value in a context of ``n_ctx`` tokens, ends included."""
        ends = self.plan.ends
        if self.store is None:
            return self.plan.bits_with_ends(shape, n_ctx)
        return self.bits + (cache_type(ends.type).bits_per_value * ends.n_positions / n_ctx if ends else 0)

    def reading(self, reference: Reference) -> Reference:
        reading = reference.reading(self.plan.centers, self.plan.ends, scales=self.plan.scales)
        if self.store is not None:
            reading.cache = Rotated(
                reading.cache.interleaved_rope, ends=self.plan.ends, rotations=self.rotations, store=self.store
            )
        return reading


def statistics(reference: Reference, tokens: Tensor) -> list[Statistics]:
    """Of all layers."""
    found: list[Statistics] = []
    reference.run(reference.embed(tokens), capture=lambda il, q, k, v: found.append(Statistics.of(q, k, v)))
    return found


def mean_centers(reference: Reference, layers: list[Statistics]) -> Centers:
    """One for all positions: the mean key."""
    return Centers.from_arrays(reference.cache.runtime_order(layer.center).cpu().numpy() for layer in layers)


def rivals(reference: Reference, layers: list[Statistics], plans: dict[str, Plan]) -> Iterator[Rival]:
    n_layer, size = len(layers), layers[0].center.shape[-1]
    centers = mean_centers(reference, layers)

    def uniform(pair: str, ends: Ends | None = None, centers: Centers | None = None) -> Plan:
        return Plan((Pair.parse(pair),) * n_layer, centers=centers, ends=ends)

    for pair in ("q4_0/q4_0", "q3_nl/q3_nl", "q3_nl/q2_nl", "q2_nl/q2_nl"):
        yield Rival(f"{pair}, centers", uniform(pair, None, centers))
    of_layer = tuple(layer.rotations(per_head=False) for layer in layers)
    of_heads = tuple(layer.rotations(per_head=True) for layer in layers)
    for name, turns in (("layer", of_layer), ("heads", of_heads)):
        plan = uniform("q2_nl", OSCAR_ENDS)
        yield Rival(f"OSCAR of the {name}", plan, turns, oscar_int2, oscar_bits(size))
    for pair in ("q2_nl/q2_nl", "q3_nl/q2_nl", "q3_nl/q3_nl"):
        types, plan = Pair.parse(pair), uniform(pair, OSCAR_ENDS)
        yield Rival(f"{pair}, Hadamard", plan)
        yield Rival(f"{pair}, OSCAR of the heads", plan, of_heads, in_types(types), types.bits_per_value)
    turn = hadamard(size).to(reference.head)[None]
    for n_bits in (2, 3, 4):
        plan, turns = uniform("q2_nl", KVARN_ENDS), (KeysValues(turn, turn),) * n_layer
        yield Rival(f"KVarN, {n_bits} bits, tail", plan, turns, kvarn(n_bits), kvarn_bits(n_bits, size))
    for pair in ("q3_nl/q3_nl", "q4_0/q4_0"):
        yield Rival(f"{pair}, tail", uniform(pair, TAIL))
    own = next(iter(plans.values()), Plan.uniform(Pair.parse("q3_nl"), n_layer, centers))
    for pair in ("q3_nl/q3_nl", "q3_nl/q2_nl"):
        plan = uniform(pair, own.ends or OUR_ENDS, own.centers)
        yield Rival(f"{pair}, ours", replace(plan, scales=own.scales))
    for name, plan in plans.items():
        yield Rival(name, plan)


class Judge:
    """Losses on ``tokens`` [chunks, context], one chunk at a time."""

    def __init__(self, reference: Reference, tokens: Tensor) -> None:
        self._reference, self._tokens = reference, tokens.to(reference.head.device)
        self._first = int(tokens.shape[1] * SKIPPED)
        self._exact = [self._scored(reference.run(reference.embed(chunk[None]))) for chunk in self._tokens]

    def losses(self, rival: Rival) -> dict[str, float]:
        reading = rival.reading(self._reference)
        parts = []
        for chunk, exact in zip(self._tokens, self._exact, strict=True):
            rows = self._scored(reading.run(reading.embed(chunk[None]), rival.plan.pairs))
            # what follows the last token is not known
            following = torch.cat((chunk[self._first + 1 :], chunk.new_tensor([-1])))
            blocks = zip(exact.split(ROWS), rows.split(ROWS), following.split(ROWS), strict=True)
            parts += [compared(*map(self._reference.logits, both), next) for *both, next in blocks]
        kld, same, worse = torch.cat(parts).T
        return {
            "kld": kld.mean().item(),
            "median": kld.median().item(),
            "same top": same.mean().item(),
            "ppl": worse[~worse.isnan()].mean().exp().item(),
        }

    def _scored(self, hidden: Tensor) -> Tensor:
        return hidden[0, self._first :]


def compared(exact: Tensor, other: Tensor, following: Tensor) -> Tensor:
    """KLD, whether the likeliest token is the same, and what the next token loses in nats: float64 [rows, 3].

    Of logits [rows, vocabulary]; where the next token is negative its loss is no number.
    """
    p, q = exact.double().log_softmax(-1), other.double().log_softmax(-1)
    kld = (p.exp() * (p - q)).sum(-1).clamp_min(0)
    lost = (p - q).gather(-1, following.clamp_min(0)[:, None])[:, 0].masked_fill(following < 0, torch.nan)
    return torch.stack((kld, (exact.argmax(-1) == other.argmax(-1)).double(), lost), -1)


def line(row: dict) -> str:
    bits, long, kld, median, same, ppl = (row[name] for name in COLUMNS)
    return f"{row['name']:40} {bits:6.3f} {long:6.3f} {kld:9.5f} {median:9.5f} {100 * same:7.2f} % {ppl:8.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--plan", action="append", type=Path, default=[], help="repeatable; the first gives ours its ends"
    )
    parser.add_argument("--only", action="append", help="rivals with this in their name, repeatable  [default: all]")
    parser.add_argument("--tokens", type=int, default=16384, help="of the text for statistics  [default: 16384]")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=output_file, help="write the rows as JSON")
    args = parser.parse_args()
    shape = model_shape(read_model(args.model))
    plans = {str(path): Plan.load(path) for path in args.plan}
    for plan in plans.values():
        plan.check(shape)
    reference = Reference(args.model, shape.architecture, args.device)
    n_ctx = min(args.tokens, 2048)
    layers = statistics(reference, calibrate(fetch_text(TUNING_TEXT), reference.tokenize, args.tokens, n_ctx).tuning)
    n_tokens = args.chunks * args.ctx
    text = fetch_text(JUDGING_TEXT).read_text(encoding="utf-8")[: 12 * n_tokens]
    judge = Judge(reference, torch.tensor(reference.tokenize(text)[:n_tokens]).view(args.chunks, args.ctx))
    print(f"{'':40} {'bits':>6} {'at 8k':>6} {'mean KLD':>9} {'median':>9} {'same top':>9} {'PPL x':>8}", flush=True)
    rows = []
    for rival in rivals(reference, layers, plans):
        if args.only and not any(part in rival.name for part in args.only):
            continue
        begun = time.monotonic()
        bits = {"bits": rival.true_bits(shape, args.ctx), f"bits at {LONG}": rival.true_bits(shape, LONG)}
        rows.append({"name": rival.name, "ends": str(rival.plan.ends), **bits, **judge.losses(rival)})
        print(f"{line(rows[-1])}  ({time.monotonic() - begun:.0f} s)", flush=True)
    if args.out:
        atomicfile.write_text(args.out, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
