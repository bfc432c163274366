"""Logits over an f16 cache and over a plan's from one variant of the CPU back end: MODEL PLAN TOKENS OUT [LIBRARY].

Without a library the best one is taken.

Prints the libraries of CPU back ends that the process has open.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp
from llama_cpp._ggml import libggml

from kvtuner_gguf.engine.llama.native import open_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan


def main(model: str, plan: str, n_tokens: int, out: str, library: str | None = None) -> None:
    libggml.ggml_backend_load.restype = ctypes.c_void_p
    if library and not libggml.ggml_backend_load(library.encode()):
        sys.exit(f"{library} does not load")
    llama_cpp.llama_backend_init()
    with open_model(Path(model), 2) as opened:
        tokens = opened.tokenize(sys.stdin.read())[:n_tokens]
        with opened.contexts([Pair("f16", "f16"), Plan.load(Path(plan))], 512, 512) as contexts:
            np.save(out, [context.decode(tokens, 0, True) for context in contexts])
    maps = Path("/proc/self/maps").read_text().split()
    print("\n".join(sorted({word for word in maps if "libggml-cpu" in word})))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
