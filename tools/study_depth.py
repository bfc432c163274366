#!/usr/bin/env python3
"""Centers and scales of keys that serve all depths of a context: what keys have left, and what a cache then loses.

  study_depth.py MODEL.gguf --part noise
  study_depth.py MODEL.gguf --part kld --at 0x1024 --at 0x8192 --at 28000x1024 --chunks 2 --out depth.json

noise  expected noise of the logits at several depths, as a multiple of that with no center: one run of the model
kld    mean KLD against the exact model (float32, torch), second half of the first chunks of an encyclopedia text

Statistics are of web text. A center is named by the positions that it is the mean over: "8192", or "32768/1024" where
the position p counts 1 / (p + 1024); "blocks of 256" has one for every 256 positions. With a scale each pair of
channels that RoPE turns is multiplied by the fourth root of the queries' energy over the keys', before the rotation,
and queries are divided by it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from outputs import output_file
from torch import Tensor

from kvtuner_gguf.engine.attention import Attention, Rope
from kvtuner_gguf.engine.cachemodel import CacheModel
from kvtuner_gguf.engine.torch import judge
from kvtuner_gguf.engine.torch.engine import TorchEngine
from kvtuner_gguf.engine.torch.judge import TorchJudge
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.files.assets import JUDGING_TEXT, fetch_text
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import UNQUANTIZED, Pair
from kvtuner_gguf.tuning.calibration import calibrate

SKIPPED = 0.5
CENTERS = ("none", "2048", "8192", "32768", "32768/1024", "blocks of 64", "blocks of 256", "blocks of 1024")
SCALED = ("2048", "32768", "blocks of 256")
DEPTHS = ((0, 1024), (0, 2048), (0, 8192), (7000, 8000), (28000, 29024), (0, 32768))


@dataclass(frozen=True)
class Layer:
    """Of the keys of a layer before RoPE, [KV heads, pairs] each: mean, energy, and that of their queries."""

    mean: Tensor  # complex
    energy: Tensor
    queries: Tensor

    @classmethod
    def of(cls, used: Attention, rope: Rope) -> Layer:
        keys = rope.pairs(used.key)
        queries = rope.pairs(used.query).abs().square().mean((0, 2)).unflatten(0, (keys.shape[1], -1)).sum(1)
        unturned = keys * rope.turns(torch.arange(keys.shape[2], device=keys.device)).conj()
        return cls(unturned.mean((0, 2)), keys.abs().square().mean((0, 2)), queries)

    def left(self, turn: Tensor, far: Tensor) -> Tensor:
        """Energy about the center ``mean * turn``, where the turns of positions are ``far`` squared from ``turn``."""
        return self.energy - self.mean.abs().square() * (1 - far)

    def scale(self, turn: Tensor) -> Tensor:
        """Half of what would make the errors of all pairs count the same."""
        factors = (self.queries / self.left(turn, 1 - turn.abs().square())).pow(0.25)
        return factors / factors.log().mean(-1, keepdim=True).exp()

    def noise(self, turn: Tensor, far: Tensor, scaled: bool) -> float:
        """Of the logits, up to a constant: the rotation gives every channel the mean error."""
        squares = self.scale(turn).square() if scaled else torch.ones_like(self.energy)
        return ((self.left(turn, far) * squares).sum(-1) * (self.queries / squares).sum(-1)).mean().item()


def block_size(name: str) -> int | None:
    """How many positions share a center, where it is not all of them."""
    return int(name.rpartition(" ")[2]) if name.startswith("blocks") else None


def mean_turn(rope: Rope, name: str) -> Tensor:
    """The mean of what RoPE does over the positions that ``name`` stands for, [pairs]."""
    if name == "none":
        return torch.zeros_like(rope.turns(torch.zeros(1, device=rope.frequencies.device))[0])
    if block := block_size(name):
        return mean_turn(rope, str(block))
    n_positions, _, flat = name.partition("/")
    positions = torch.arange(int(n_positions), device=rope.frequencies.device)
    weights = 1 / (positions.double() + float(flat)) if flat else torch.ones_like(positions).double()
    return (rope.turns(positions) * (weights / weights.sum())[:, None]).sum(0)


def distance(rope: Rope, name: str, start: int, stop: int) -> Tensor:
    """Mean squared distance of the turns of some positions from that of the center, [pairs]."""
    turn = mean_turn(rope, name)
    if block_size(name):
        return 1 - turn.abs().square()
    positions = torch.arange(start, stop, max(1, (stop - start) // 512), device=rope.frequencies.device)
    return (rope.turns(positions) - turn).abs().square().mean(0)


@dataclass(frozen=True)
class Depth(CacheModel):
    """Keys less the center of their position, ``turns`` [1 or tokens, pairs] times the mean; channels scaled."""

    layers: Sequence[Layer] = ()
    rope: Rope | None = None
    turns: Tensor | None = None
    scaled_by: Tensor | None = None

    def keys(self, k: Tensor, type_name: str, il: int, rotated: bool = False) -> Tensor:
        if type_name == UNQUANTIZED or self.rope is None or self.turns is None:
            return super().keys(k, type_name, il, rotated)
        layer = self.layers[il]
        center = self.model_order(self.rope.channels(layer.mean[:, None] * self.turns).half().to(k))
        scale = torch.ones_like(center[:, :1])
        if self.scaled_by is not None:
            factors = layer.scale(self.scaled_by)
            scale = self.model_order(self.rope.channels(torch.complex(factors, factors)).half().to(k))[:, None]
        return super().keys((k - center) * scale, type_name, il, rotated) / scale + center


class Study:
    """Rows of results; each is printed as it comes."""

    def __init__(self, model: Path, n_tokens: int, device: str) -> None:
        self.engine = TorchEngine(model, model_shape(read_model(model)), device)
        self.rope = self.engine.reference.rope
        self.layers: list[Layer] = []
        self.rows: list[dict] = []
        web = calibrate(fetch_text("web"), self.engine.tokenize, n_tokens, min(n_tokens, 2048)).tuning
        self.engine.capture(web, lambda il, used: self.layers.append(Layer.of(used, self.rope)))

    def noise(self) -> None:
        print("center         scaled " + "".join(f"{start}-{stop}".rjust(14) for start, stop in DEPTHS))
        base = [self._noise("none", False, *depth) for depth in DEPTHS]
        for name, scaled in choices():
            values = [self._noise(name, scaled, *depth) / b for depth, b in zip(DEPTHS, base, strict=True)]
            print(f"{name:14} {scaled!s:6} " + "".join(f"{value:14.3f}" for value in values), flush=True)
            self.rows += [{"center": name, "scaled": scaled, "depths": DEPTHS, "noise": values}]

    def _noise(self, name: str, scaled: bool, start: int, stop: int) -> float:
        turn, far = mean_turn(self.rope, name), distance(self.rope, name, start, stop)
        return sum(layer.noise(turn, far, scaled) for layer in self.layers)

    def kld(self, start: int, n_ctx: int, n_chunks: int, pair: Pair, ends: Ends | None) -> None:
        """Rows for all choices, where chunks start at a position."""
        text = fetch_text(JUDGING_TEXT).read_text(encoding="utf-8")[: 12 * n_ctx * n_chunks]
        tokens = torch.tensor(self.engine.tokenize(text)[: n_ctx * n_chunks]).view(n_chunks, n_ctx)
        reading = self.engine.reference.reading(ends=ends, start=start)
        judged = TorchJudge(reading, tokens)
        for name, scaled in choices():
            begun = time.monotonic()
            reading.cache = self._cache(reading.cache, name, scaled, start, n_ctx)
            kld = judged.kld([pair] * reading.n_layer).mean().item()
            row = {"start": start, "ctx": n_ctx, "chunks": n_chunks, "pair": str(pair), "ends": str(ends)}
            self.rows.append({**row, "center": name, "scaled": scaled, "kld": kld})
            took = time.monotonic() - begun
            print(
                f"{start:6} {n_ctx:6} {pair!s:12} {ends!s:10} {name:14} {scaled!s:6} {kld:.5f}  ({took:.0f} s)",
                flush=True,
            )

    def _cache(self, cache: CacheModel, name: str, scaled: bool, start: int, n_ctx: int) -> Depth:
        turns = mean_turn(self.rope, name)[None]
        if block := block_size(name):
            positions = torch.arange(start, start + n_ctx, device=self.rope.frequencies.device)
            turns = self.rope.turns(positions // block * block) * turns
        scaled_by = mean_turn(self.rope, name) if scaled else None
        return Depth(cache.interleaved_rope, None, cache.ends, self.layers, self.rope, turns, scaled_by)


def choices() -> Iterator[tuple[str, bool]]:
    """Centers, and whether keys are scaled."""
    yield from ((name, False) for name in CENTERS)
    yield from ((name, True) for name in SCALED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--part", choices=("noise", "kld"), action="append", help="default: both")
    parser.add_argument("--tokens", type=int, default=4096, help="of the text for statistics  [default: 4096]")
    parser.add_argument("--at", action="append", help="STARTxCTX, repeatable  [default: 0x1024 and 28000x1024]")
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--pair", action="append", type=Pair.parse, help="repeatable  [default: q3_nl/f32]")
    parser.add_argument("--ends", default="4+32", help="FIRST+LAST, or none  [default: 4+32]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=output_file, help="write the rows as JSON")
    args = parser.parse_args()
    first, _, last = args.ends.partition("+")
    ends = None if args.ends == "none" else Ends(int(first), int(last))
    judge.SKIPPED = SKIPPED
    study = Study(args.model, args.tokens, args.device)
    if "noise" in (args.part or ["noise"]):
        study.noise()
    for at in args.at or ("0x1024", "28000x1024") if "kld" in (args.part or ["kld"]) else ():
        for pair in args.pair or [Pair.parse("q3_nl/f32")]:
            study.kld(*map(int, at.split("x")), args.chunks, pair, ends)
    if args.out:
        atomicfile.write_text(args.out, json.dumps(study.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
