#!/usr/bin/env python3
"""How to store keys and values in 2 and 3 bits: levels, blocks and scales, and what each loses.

  study_lowbit.py --part gauss
  study_lowbit.py MODEL.gguf --part rows --part kld --out lowbit.json

gauss  mean squared error on normal values, as a multiple of the Lloyd-Max quantizer's
rows   the same on the keys, centered, and values of the model, both rotated, then the error of the attention output
kld    mean KLD against the exact model (float32, torch) with one pair of formats in all layers, keys centered
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from outputs import output_file
from torch import Tensor

from kvtuner_gguf.engine import fakequant
from kvtuner_gguf.engine.fakequant import fake_quantize
from kvtuner_gguf.engine.torch.engine import TorchEngine
from kvtuner_gguf.engine.torch.judge import TorchJudge
from kvtuner_gguf.engine.torch.reference import attend
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.files.assets import fetch_text
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.cachetypes import CACHE_TYPES, CacheType
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.tuning.calibration import calibrate
from kvtuner_gguf.tuning.center import measure_centers

LLOYD_MAX = {2: 0.11748, 3: 0.03454}
SCALE_BYTES = 2
LEVELS = {  # magnitudes, and the largest level of Lloyd-Max for a standard deviation of 1
    "2-bit even": (2, (1, 3), 1.494),
    "2-bit 3:10": (2, (3, 10), 1.510),
    "3-bit even": (3, (1, 3, 5, 7), 2.052),
    "3-bit 3:9:16:26": (3, (3, 9, 16, 26), 2.152),
}


@dataclass(frozen=True)
class Format:
    """A way to store blocks; ``quantize`` takes and gives [blocks, block]."""

    name: str
    n_bits: int
    block: int
    bytes_per_block: int
    quantize: Callable[[Tensor], Tensor]

    @property
    def bits(self) -> float:
        return 8 * self.bytes_per_block / self.block

    def register(self) -> str:
        """Let the reference model use it, under its name."""
        CACHE_TYPES[self.name] = CacheType(self.name, -1, self.block, self.bytes_per_block)
        fakequant._QUANTIZERS[self.name] = self.quantize
        return self.name


def half(x: Tensor) -> Tensor:
    return x.half().float()


def minmax(n_bits: int) -> Callable[[Tensor], Tensor]:
    """Asymmetric: even levels from the smallest value to the largest, scale and offset in float16 (KIVI)."""

    def quantize(x: Tensor) -> Tensor:
        low, high = half(x.amin(-1, keepdim=True)), x.amax(-1, keepdim=True)
        scale = half((high - low) / (2**n_bits - 1)).clamp_min(1e-8)
        return ((x - low) / scale).round().clamp(0, 2**n_bits - 1) * scale + low

    return quantize


def symmetric(magnitudes: Sequence[float], largest: float, scale_by: str) -> Callable[[Tensor], Tensor]:
    """Signs times magnitudes times one float16 scale: of the largest value, of the rms, or refined by least squares."""
    levels = torch.tensor(magnitudes, dtype=torch.float32)
    steps = (levels[1:] + levels[:-1]) / 2

    def nearest(x: Tensor, scale: Tensor) -> Tensor:
        index = torch.bucketize(x.abs() / scale.clamp_min(1e-12), steps.to(x), right=True)
        return levels.to(x)[index]

    def quantize(x: Tensor) -> Tensor:
        if scale_by == "largest":
            scale = x.abs().amax(-1, keepdim=True) / levels[-1]
        else:
            scale = x.square().mean(-1, keepdim=True).sqrt() * largest / levels[-1]
        for _ in range(int(scale_by.removeprefix("squares ")) if scale_by.startswith("squares") else 0):
            level = nearest(x, scale)
            scale = (x.abs() * level).sum(-1, keepdim=True) / level.square().sum(-1, keepdim=True)
        scale = half(scale)
        return scale * nearest(x, scale) * x.sign()

    return quantize


def ternary(x: Tensor) -> Tensor:
    """Upstream's q2_0, a type for weights: -1, 0 and 1 times the largest magnitude."""
    scale = half(x.abs().amax(-1, keepdim=True))
    return (x / scale.clamp_min(1e-12)).round().clamp(-1, 2) * scale


def formats() -> Iterator[Format]:
    for block in (32, 64, 128):
        for n_bits in (2, 3):
            size = block * n_bits // 8
            yield Format(f"minmax {n_bits}-bit, {block}", n_bits, block, size + 2 * SCALE_BYTES, minmax(n_bits))
        for name, (n_bits, magnitudes, largest) in LEVELS.items():
            for scale_by in ("largest", "rms", "squares 1", "squares 2", "squares 4"):
                quantize = symmetric(magnitudes, largest, scale_by)
                size = block * n_bits // 8 + SCALE_BYTES
                yield Format(f"{name}, {block}, {scale_by}", n_bits, block, size, quantize)
    yield Format("q2_0, 64", 2, 64, 18, ternary)


def study_gauss(seed: int = 0) -> list[dict]:
    values = torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed))
    rows = []
    chosen = [Format(name, bits, 64, CACHE_TYPES[name].block_bytes, lambda x, n=name: fake_quantize(x, n))
              for name, bits in (("q2_nl", 2), ("q3_nl", 3))]  # fmt: skip
    for found in [*formats(), *chosen]:
        x = values.reshape(-1, found.block)
        error = (x - found.quantize(x)).square().mean().item()
        rows.append({"format": found.name, "bits": found.bits, "mse": error, "ratio": error / LLOYD_MAX[found.n_bits]})
        print(
            f"{found.name:34} {found.bits:6.3f} bits  mse {error:.5f}  {rows[-1]['ratio']:.3f} of Lloyd-Max", flush=True
        )
    return rows


def study_row_lengths(seed: int = 0) -> list[dict]:
    """The chosen types on rows of a normal distribution whose scale is drawn for each row."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for name, n_bits in (("q2_nl", 2), ("q3_nl", 3)):
        for length in (64, 128, 256):
            x = torch.randn(4096, length, generator=random)
            x = x * torch.rand(4096, 1, generator=random).mul(8).sub(4).exp()
            power = x.square().mean(-1)
            error = ((x - fake_quantize(x, name)).square().mean(-1) / power).mean().item()
            rows.append({"type": name, "row": length, "mse": error, "ratio": error / LLOYD_MAX[n_bits]})
            print(f"{name} rows of {length}: mse {error:.5f}, {rows[-1]['ratio']:.3f} of Lloyd-Max", flush=True)
    return rows


class Study:
    """A model with centered keys, and the types to compare."""

    def __init__(self, model: Path, n_ctx: int, n_chunks: int, device: str) -> None:
        shape = model_shape(read_model(model))
        self.head_dim = shape.head_dim_k
        engine = TorchEngine(model, shape, device)
        self.reference = engine.reference
        web = calibrate(fetch_text("web"), self.reference.tokenize, 2048, 512, 0).tuning
        centers, _ = measure_centers(engine, web, span=None)
        self.reference.cache = replace(self.reference.cache, centers=centers)
        texts = calibrate(fetch_text("encyclopedia"), self.reference.tokenize, n_ctx * n_chunks, n_ctx, 1)
        self.tokens = texts.held_out[:n_chunks]

    def rows(self, names: Sequence[str]) -> list[dict]:
        """For each layer, side and type: the error of the values, and that of the attention output, of their power."""
        cache, found = self.reference.cache, []

        def measure(il: int, query: Tensor, key: Tensor, value: Tensor) -> None:
            center = torch.from_numpy(cache.centers.array_k(il)).reshape(-1, 1, key.shape[-1])
            spread = cache.runtime_order(key) - center.to(key)
            exact = attend(query, key, value)
            for name in names:
                k, v = cache.keys(key, name, il), cache.values(value, name)
                for side, error, power, output in (
                    ("K", k - key, spread, attend(query, k, value)),
                    ("V", v - value, value, attend(query, key, v)),
                ):
                    row = {"layer": il, "side": side, "type": name, "mse": share(error, power)}
                    found.append(row | {"output": share(output - exact, exact)})

        self.reference.run(self.reference.embed(self.tokens), capture=measure)
        return found

    def kld(self, judge: TorchJudge, pair: str) -> dict:
        k, v = pair.split("/")
        scores = judge.kld([Pair(k, v)] * self.reference.n_layer)
        row = {"pair": pair, "kld": scores.mean().item(), "n": scores.numel()}
        row["bits"] = sum(CACHE_TYPES[name].bits_per_value for name in (k, v)) / 2
        print(f"{pair:48} {row['bits']:.3f} bits  KLD {row['kld']:.5f}", flush=True)
        return row


def share(error: Tensor, power: Tensor) -> float:
    return (error.double().square().sum() / power.double().square().sum()).item()


def study_rows(study: Study) -> list[dict]:
    names = ("q2_nl", "q3_nl")
    found = study.rows(names)
    columns = [(name, side) for name in names for side in "KV"]
    print("| layer | " + " | ".join(f"{name} {side}" for name, side in columns) + " |\n|" + "---|" * 5)
    for il in range(study.reference.n_layer):
        cells = (pick(found, il, *column) for column in columns)
        print(f"| {il} | " + " | ".join(f"{row['mse']:.4f}, {row['output']:.4f}" for row in cells) + " |")
    for name, side in columns:
        mine = [pick(found, il, name, side) for il in range(study.reference.n_layer)]
        worst = max(mine, key=lambda row: row["mse"])
        mean = sum(row["mse"] for row in mine) / len(mine)
        print(f"{name} {side}: mean {mean:.4f} of the variance, worst layer {worst['layer']}: {worst['mse']:.4f}")
    return found


def pick(rows: Sequence[dict], il: int, name: str, side: str) -> dict:
    return next(row for row in rows if (row["layer"], row["type"], row["side"]) == (il, name, side))


def study_kld(study: Study, pairs: Sequence[str]) -> list[dict]:
    judge = TorchJudge(study.reference, study.tokens)
    return [study.kld(judge, pair) for pair in pairs]


def alternatives(head_dim: int) -> list[str]:
    """Pairs of the chosen types, and of what has as many bits; with heads of 64 min-max has a quarter bit more."""
    by_name = {found.name: found for found in formats()}
    block = 64 if head_dim % 128 else 128
    same_size = {
        "q2_nl": [f"minmax 2-bit, {block}", "q2_0, 64"],
        "q3_nl": [f"minmax 3-bit, {block}", "3-bit even, 64, largest"],
    }
    pairs = []
    for name, others in same_size.items():
        for other in (name, *others):
            if other in by_name:
                by_name[other].register()
            pairs += [f"q8_0/{other}", f"{other}/q8_0", f"q4_0/{other}", f"{other}/q4_0"]
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="for the parts rows and kld")
    parser.add_argument("--part", choices=("gauss", "rows", "kld"), action="append", required=True)
    parser.add_argument("--ctx", type=int, default=1024, help="tokens of a chunk of the text that judges")
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where torch runs the model: cpu, cuda")
    parser.add_argument("--out", type=output_file, help="write the rows as JSON")
    args = parser.parse_args()
    results: dict[str, list[dict]] = {}
    if "gauss" in args.part:
        results["gauss"] = study_gauss()
        results["row_lengths"] = study_row_lengths()
    if {"rows", "kld"} & set(args.part):
        if args.model is None:
            parser.error("say for which MODEL.gguf")
        study = Study(args.model, args.ctx, args.chunks, args.device)
        if "rows" in args.part:
            results["rows"] = study_rows(study)
        if "kld" in args.part:
            results["kld"] = study_kld(study, ["q4_0/q4_0", "q8_0/q4_0", *alternatives(study.head_dim)])
    if args.out:
        atomicfile.write_text(args.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
