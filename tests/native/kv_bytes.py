"""Run by tests in a process of its own: what contexts of models allocate for K and V.

Reads a list of ``{model, plan, center, contexts}`` as JSON, plan null for none, contexts the fields of `ContextSize`;
prints for each a list of ``[bytes, bits per value, bytes of tables of centers]``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

import llama_cpp
import llama_cpp.kvtuner

SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)
bits_per_value = llama_cpp.llama_cpp._lib.kvtuner_bits_per_value
bits_per_value.restype, bits_per_value.argtypes = ctypes.c_double, [llama_cpp.llama_context_p_ctypes]


def allocated(model: object, size: dict) -> tuple[int, float, int]:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max = size["n_ctx"], size["n_seq_max"]
    params.n_batch = params.n_ubatch = size["n_ubatch"]
    params.kv_unified, params.swa_full = size["unified"], size["swa_full"]
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        sys.exit(f"no context of {size}")
    native = llama_cpp.kvtuner
    found = native.kv_cache_bytes(context), bits_per_value(context), native.kv_centers_bytes(context)
    llama_cpp.llama_free(context)
    return found


def run(job: dict) -> list[tuple[int, float, int]]:
    model = llama_cpp.llama_model_load_from_file(os.fsencode(job["model"]), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit(f"cannot load {job['model']}")
    llama_cpp.kvtuner.set_kv_config(model, job["plan"], job["center"])
    found = [allocated(model, size) for size in job["contexts"]]
    llama_cpp.llama_model_free(model)
    return found


def main() -> None:
    llama_cpp.llama_log_set(SILENT, None)
    llama_cpp.llama_backend_init()
    json.dump([run(job) for job in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
