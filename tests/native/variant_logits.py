"""Logits of a plan from one variant of the CPU back end: MODEL PLAN TOKENS OUT [LIBRARY]; without it the best one.

Prints the libraries of CPU back ends that the process has open.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp
from llama_cpp._ggml import libggml

from kvtuner_gguf.plan import Plan
from kvtuner_gguf.runtime.native import open_model


def main(model: str, plan: str, n_tokens: int, out: str, library: str | None = None) -> None:
    libggml.ggml_backend_load.restype = ctypes.c_void_p
    if library and not libggml.ggml_backend_load(library.encode()):
        sys.exit(f"{library} does not load")
    llama_cpp.llama_backend_init()
    with open_model(Path(model), 2) as opened, opened.context(Plan.load(Path(plan)), 512, 512) as context:
        tokens = opened.tokenize(sys.stdin.read())[:n_tokens]
        np.save(out, context.decode(tokens, 0, True))
    maps = Path("/proc/self/maps").read_text().split()
    print("\n".join(sorted({word for word in maps if "libggml-cpu" in word})))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
