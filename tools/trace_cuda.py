#!/usr/bin/env python3
"""What the kernels of a layer take in a real run, inside CUDA graphs, where other profilers disturb most.

  trace_cuda.py -- llama-bench -m model.gguf -ngl 99 -fa 1 -p 0 -n 16 -r 1

The layer is what lies between two kernels of attention, as often as that repeats in the same way. Of each kernel stands
how long it ran, and how much later it ended than the one before it: with launches that overlap, that is what it costs.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

SOURCE = Path(__file__).with_name("trace_cuda.cpp")
ATTENTION = re.compile(r"attend|flash_attn_(?!combine|mask|stream)")
MICROSECOND = 1e3


class Kernel(NamedTuple):
    """Times in nanoseconds."""

    begin: int
    end: int
    name: str


class Row(NamedTuple):
    """Of a kernel of a layer, in microseconds."""

    name: str
    ran: float
    cost: float


def read_kernels(text: str) -> list[Kernel]:
    lines = (line.split(" ", 2) for line in text.splitlines())
    return sorted(Kernel(int(begin), int(end), short_name(name)) for begin, end, name in lines)


def short_name(name: str) -> str:
    """The name without namespaces, result and arguments."""
    return re.split(r"[<(]", name.replace("(anonymous namespace)::", ""))[0].split(" ")[-1].split("::")[-1]


def layer_rows(kernels: Sequence[Kernel]) -> list[Row]:
    """The kernels from one attention to the next, where these are as many as most often."""
    starts = [i for i, kernel in enumerate(kernels) if ATTENTION.search(kernel.name)]
    lengths = Counter(b - a for a, b in pairwise(starts))
    if not lengths:
        return []
    length = lengths.most_common(1)[0][0]
    layers = [a for a, b in pairwise(starts) if b - a == length and a > 0]

    def middle(of: Sequence[int]) -> float:
        return median(of) / MICROSECOND

    return [
        Row(
            kernels[layers[0] + k].name,
            middle([kernels[a + k].end - kernels[a + k].begin for a in layers]),
            middle([kernels[a + k].end - kernels[a + k - 1].end for a in layers]),
        )
        for k in range(length)
    ]


def trace(command: Sequence[str], cuda: Path) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        library, written = Path(folder) / "libtrace.so", Path(folder) / "kernels.txt"
        paths = (f"-I{cuda / 'include'}", f"-L{cuda / 'lib64'}", f"-Wl,-rpath,{cuda / 'lib64'}", "-lcupti")
        subprocess.run(["c++", "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(library), *paths], check=True)
        added = {"CUDA_INJECTION64_PATH": str(library), "KVTUNER_TRACE": str(written)}
        if subprocess.run(command, env={**os.environ, **added}).returncode:
            sys.exit(f"failed: {' '.join(command)}")
        return read_kernels(written.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", type=Path, default=Path("/usr/local/cuda"), help="where CUDA with CUPTI is")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    rows = layer_rows(trace(args.command, args.cuda))
    print(f"{'kernel':<40} {'ran':>8} {'cost':>8} us")
    for row in rows:
        print(f"{row.name[:40]:<40} {row.ran:8.2f} {row.cost:8.2f}")
    print(f"{'layer':<40} {'':>8} {sum(row.cost for row in rows):8.2f}")


if __name__ == "__main__":
    main()
