"""Run by a test in a process of its own, which a race may end: some threads select plans, another creates contexts.

Prints the distinct [types of the layers, fingerprint] that the contexts had.
"""

from __future__ import annotations

import json
import sys
import threading

import llama_cpp
from llama_cpp import kvtuner

SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)
N_CONTEXTS = 200


def main() -> None:
    path, *plans = sys.argv[1:]
    llama_cpp.llama_log_set(SILENT, None)
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    kvtuner.set_kv_config(model, plans[0])
    done = threading.Event()

    def select() -> None:
        while not done.is_set():
            for plan in plans:
                kvtuner.set_kv_config(model, plan)

    selecting = [threading.Thread(target=select) for _ in range(3)]
    for thread in selecting:
        thread.start()
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 32
    seen = []
    try:
        for _ in range(N_CONTEXTS):
            context = llama_cpp.llama_init_from_model(model, params)
            row = [kvtuner.kv_cache_types(context), kvtuner.plan_fingerprint(context)]
            llama_cpp.llama_free(context)
            if row not in seen:
                seen.append(row)
    finally:
        done.set()
        for thread in selecting:
            thread.join()
    print(json.dumps([[list(map("/".join, types)), fingerprint] for types, fingerprint in seen]))


if __name__ == "__main__":
    main()
