#!/usr/bin/env python3
"""Centers of keys for all depths of a context, and scales on top of them: the mean KLD of uniform pairs with each.

  study_depth.py MODEL.gguf --at 0x2048 --at 0x8192 --at 28000x1024
  study_depth.py MODEL.gguf --keys span256 --keys span256*all^0.25 --keys span256*attention^0.25 --pair q3_nl/q3_nl

Against the exact model (float32, torch), second half of the first chunks of an encyclopedia text; statistics are of web
text. A center is named by the positions that it is the mean over: 2048 is one for all keys, span256 turns with the
blocks of so many positions. A scale multiplies each pair of channels that RoPE turns, before the rotation, and queries
are divided by it: the energy of queries over that of centered keys, to a power, of which 0.25 makes the expected noise
of logits least. It is that of all tokens, of the keys alone, or (attention) as in a tuning.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from outputs import output_file
from torch import Tensor

from kvtuner_gguf.engine.attention import Attention
from kvtuner_gguf.engine.cachemodel import CacheModel
from kvtuner_gguf.engine.torch import judge
from kvtuner_gguf.engine.torch.engine import TorchEngine
from kvtuner_gguf.engine.torch.judge import TorchJudge
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.files.assets import JUDGING_TEXT, fetch_text
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.tuning.calibration import calibrate
from kvtuner_gguf.tuning.center import center_of
from kvtuner_gguf.tuning.scale import energies, energies_by_attention, pair_scale

SKIPPED = 0.5
KEYS = ("none", "2048", "8192", "32768", "span64", "span256", "span1024")
NAMED = re.compile(r"(none|(span)?(\d+))(?:\*(all|keys|attention)\^([\d.]+))?")


@dataclass
class Keys:
    """What one choice does to keys, with the centers and scales [KV heads, head size] of all layers."""

    name: str
    n_positions: int
    is_span: bool
    energies: str | None
    power: float
    centers: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)

    @classmethod
    def parse(cls, name: str) -> Keys:
        found = NAMED.fullmatch(name)
        if found is None:
            raise argparse.ArgumentTypeError(f"{name!r} is no choice of centers and scales")
        _, is_span, n_positions, energies, power = found.groups()
        return cls(name, int(n_positions or 0), bool(is_span), energies, float(power or 0))

    @property
    def span(self) -> int | None:
        return self.n_positions if self.is_span else None

    def see(self, used: Attention, ends: Ends | None) -> None:
        """Take in the next layer."""
        center = center_of(used, self.n_positions) if self.n_positions else used.key.new_zeros(used.key.shape[1::2])
        scale = torch.ones_like(center)
        if self.energies:
            assert used.rope is not None
            centered = replace(used, key=used.key - used.lost_by_keys(center, self.span).to(used.key))
            scale = pair_scale(*ENERGIES[self.energies](centered, used, ends), self.power, used.rope)
        self.centers.append(center)
        self.scales.append(scale)

    def cache(self, plain: CacheModel) -> CacheModel:
        centers, scales = ([v.cpu().numpy() for v in vectors] for vectors in (self.centers, self.scales))
        return replace(
            plain,
            centers=Centers.from_arrays(centers, self.span) if self.n_positions else None,
            scales=Scales.from_arrays(scales) if self.energies else None,
        )


def of_all(centered: Attention, used: Attention, ends: Ends | None) -> tuple[Tensor, Tensor]:
    queries, keys = energies(centered)
    return queries.mean((0, 2, 3)), keys.mean((0, 2))


def of_keys(centered: Attention, used: Attention, ends: Ends | None) -> tuple[Tensor, Tensor]:
    keys = energies(centered)[1].mean((0, 2))
    return torch.ones_like(keys), keys


ENERGIES = {"all": of_all, "keys": of_keys, "attention": energies_by_attention}


class Study:
    """Rows of results; each is printed as it comes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.engine = TorchEngine(args.model, model_shape(read_model(args.model)), args.device)
        self.keys, self.ends, self.n_chunks = args.keys, args.ends, args.chunks
        self.rows: list[dict] = []
        web = calibrate(fetch_text("web"), self.engine.tokenize, args.tokens, min(args.tokens, 2048)).tuning
        self.engine.capture(web, self._see)

    def _see(self, il: int, used: Attention) -> None:
        for keys in self.keys:
            keys.see(used, self.ends)

    def kld(self, start: int, n_ctx: int, pair: Pair) -> None:
        """Rows for all choices, where chunks start at a position."""
        n_tokens = n_ctx * self.n_chunks
        text = fetch_text(JUDGING_TEXT).read_text(encoding="utf-8")[: 12 * n_tokens]
        tokens = torch.tensor(self.engine.tokenize(text)[:n_tokens]).view(self.n_chunks, n_ctx)
        reading = self.engine.reference.reading(ends=self.ends, start=start)
        judged, plain = TorchJudge(reading, tokens), reading.cache
        for keys in self.keys:
            reading.cache = keys.cache(plain)
            kld = judged.kld([pair] * reading.n_layer).mean().item()
            row = {"start": start, "ctx": n_ctx, "chunks": self.n_chunks, "pair": str(pair), "ends": str(self.ends)}
            self.rows.append({**row, "keys": keys.name, "kld": kld})
            print(f"{start:6} {n_ctx:6} {pair!s:12} {self.ends!s:10} {keys.name:24} {kld:.5f}", flush=True)


def parsed_ends(text: str) -> Ends | None:
    first, _, last = text.partition("+")
    return None if text == "none" else Ends(int(first), int(last))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--keys", type=Keys.parse, action="append", help=f"repeatable  [default: {', '.join(KEYS)}]")
    parser.add_argument("--tokens", type=int, default=4096, help="of the text for statistics  [default: 4096]")
    parser.add_argument("--at", action="append", help="STARTxCTX, repeatable  [default: 0x1024 and 28000x1024]")
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--pair", action="append", type=Pair.parse, help="repeatable  [default: q3_nl/q3_nl]")
    parser.add_argument("--ends", type=parsed_ends, default="4+32", help="FIRST+LAST, or none  [default: 4+32]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=output_file, help="write the rows as JSON")
    args = parser.parse_args()
    args.keys = args.keys or [Keys.parse(name) for name in KEYS]
    judge.SKIPPED = SKIPPED
    study = Study(args)
    for at in args.at or ("0x1024", "28000x1024"):
        for pair in args.pair or [Pair.parse("q3_nl/q3_nl")]:
            study.kld(*map(int, at.split("x")), pair)
    if args.out:
        atomicfile.write_text(args.out, json.dumps(study.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
