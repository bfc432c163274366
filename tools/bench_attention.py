#!/usr/bin/env python3
"""Prefill and decode over deep caches of a plan, as ratios to the f16 cache without one, which is the base's.

  bench_attention.py MODEL.gguf --depth 0 --depth 4096 --depth 16384 --threads 1 --threads 2

All caches take turns, round by round; the median of the rounds' ratios counts. A deep cache is filled by repeating the
state of its first tokens, which costs no time and leaves real keys and values. The plan "paper" has the shape of the
3.25-bit table that KVTuner publishes for Llama-3.1-8B, mapped onto the layers of the model. With --ends 4+128 each
cache is timed with these exact ends, too, and has its ratio to the same cache without.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from paper_plan import paper_plan

from kvtuner_gguf.engine.llama.native import Context, Model, open_model
from kvtuner_gguf.files.assets import fetch_text
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

N_BATCH = 512
BASE = "f16, base"


def parse_ends(text: str) -> Ends:
    first, _, last = text.partition("+")
    last, _, kind = last.partition(":")
    return Ends(int(first), int(last), kind or "f16")


def caches(names: list[str], n_layer: int, ends: Sequence[Ends] = ()) -> dict[str, Pair | Plan]:
    """Each cache without ends, then with all ``ends``."""
    wanted: dict[str, Pair | Plan] = {BASE: Pair.parse("f16")}
    for name in names:
        plan = paper_plan(n_layer) if name == "paper" else Plan.uniform(Pair.parse(name), n_layer)
        wanted[name] = plan
        wanted |= {f"{name} {of}": replace(plan, ends=of) for of in ends}
    return wanted


class DeepSequence:
    """A context whose one sequence can be set to any depth."""

    def __init__(self, lib: object, context: Context, tokens: np.ndarray, ends: Ends | None) -> None:
        self._lib, self._context, self._tokens = lib, context, tokens
        self._n_first = ends.first if ends else None
        self._context.decode(tokens[:N_BATCH], 0, False)
        self._state = self._save()

    def set_depth(self, depth: int) -> None:
        self._context.clear()
        if depth:
            state = repeat_cells(self._state, depth, self._n_first)
            raw = np.frombuffer(state, np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            if self._lib.llama_state_seq_set_data(self._context._pointer, raw, len(state), 0) != len(state):
                raise SystemExit(f"the state of {depth} tokens was refused")

    def time(self, n_tokens: int, n_together: int, depth: int) -> float:
        """Tokens per second of ``n_tokens`` more, which are forgotten again."""
        start = time.perf_counter()
        for i in range(0, n_tokens, n_together):
            self._context.decode(self._tokens[i : i + n_together], depth + i, n_together == 1)
        seconds = time.perf_counter() - start
        memory = self._lib.llama_get_memory(self._context._pointer)
        self._lib.llama_memory_seq_rm(memory, 0, depth, -1)
        return n_tokens / seconds

    def _save(self) -> bytes:
        pointer = self._context._pointer
        raw = (ctypes.c_uint8 * self._lib.llama_state_seq_get_size(pointer, 0))()
        return bytes(raw[: self._lib.llama_state_seq_get_data(pointer, raw, len(raw), 0)])


def repeat_cells(state: bytes, depth: int, n_first: int | None = None) -> bytes:
    """The ``state`` of a sequence of N_BATCH tokens as one of ``depth`` tokens, whose rows repeat.

    With exact ends of ``n_first`` positions the rows of others become those of the last ones.
    """
    begin = state.index(struct.pack("<IIiI", 1, N_BATCH, 0, 1))  # streams, cells, position, sequences of the cell
    parts = [state[:begin], struct.pack("<II", 1, depth)]
    parts += [struct.pack("<iIi", position, 1, 0) for position in range(depth)]
    at = begin + 8 + 12 * N_BATCH
    is_transposed, n_layer, *_ = struct.unpack_from("<IIII", state, at)  # the others: sizes of the rotations
    assert not is_transposed
    parts.append(state[at : at + 16])
    at += 16
    for _ in range(2 * n_layer):
        (row_bytes,) = struct.unpack_from("<Q", state, at + 4)
        parts.append(state[at : at + 12])
        at += 12
        rows = state[at : at + row_bytes * N_BATCH]
        parts.append((rows * -(-depth // N_BATCH))[: depth * row_bytes])
        at += row_bytes * N_BATCH
    if n_first is not None:
        (n_exact,) = struct.unpack_from("<I", state, at)
        numbers = np.frombuffer(state, np.uint32, n_exact, at + 4)
        moved = np.where(numbers < n_first, numbers, numbers + np.uint32(depth - N_BATCH))
        parts += [state[at : at + 4], moved.astype(np.uint32).tobytes()]
        at += 4 + 4 * n_exact
    return b"".join(parts) + state[at:]


def ends_of(cache: Pair | Plan) -> Ends | None:
    return cache.ends if isinstance(cache, Plan) else None


@contextmanager
def sequences(model: Model, wanted: Mapping[str, Pair | Plan], n_ctx: int) -> Iterator[dict[str, DeepSequence]]:
    import llama_cpp

    text = fetch_text("encyclopedia").read_bytes()[:8000].decode("utf-8", "ignore")
    tokens = model.tokenize(text)[:N_BATCH]
    with ExitStack() as stack:
        opened = {name: stack.enter_context(model.context(cache, n_ctx, N_BATCH)) for name, cache in wanted.items()}
        yield {
            name: DeepSequence(llama_cpp, context, tokens, ends_of(wanted[name])) for name, context in opened.items()
        }


def measure(all_of_them: Mapping[str, DeepSequence], depth: int, n_prefill: int, n_decode: int, n_rounds: int) -> None:
    for sequence in all_of_them.values():
        sequence.set_depth(depth)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in all_of_them}
    for turn in range(n_rounds):
        order = list(all_of_them) if turn % 2 == 0 else list(all_of_them)[::-1]
        for name in order:
            sequence = all_of_them[name]
            prefill = sequence.time(n_prefill, n_prefill, depth)
            speeds[name].append((prefill, sequence.time(n_decode, 1, depth)))
    for name, rounds in speeds.items():
        cells = []
        for side, what in enumerate(("prefill", "decode")):
            mine = [each[side] for each in rounds]
            cell = f"{what} {statistics.median(mine):9.2f} {ratio(mine, [each[side] for each in speeds[BASE]]):6.2f}x"
            without = name.rpartition(" ")[0]
            if without in speeds:
                cell += f" {ratio(mine, [each[side] for each in speeds[without]]):6.3f} of without"
            cells.append(cell)
        print(f"{depth:6} {name:20} {'  '.join(cells)}", flush=True)


def ratio(mine: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--depth", type=int, action="append", help="tokens already in the cache  [0 4096 16384]")
    parser.add_argument("--threads", type=int, action="append", help="[1 2]")
    parser.add_argument("--cache", action="append", help="K/V or paper  [q8_0 q4_0 q8_0/q4_0 q3_nl/q2_nl paper]")
    parser.add_argument("--ends", type=parse_ends, action="append", default=[], help="FIRST+LAST[:TYPE], e.g. 4+128")
    parser.add_argument("--prefill", type=int, default=N_BATCH, help=f"tokens of a prefill run, at most {N_BATCH}")
    parser.add_argument("--decode", type=int, default=16, help="tokens of a decode run")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    depths = args.depth or [0, 4096, 16384]
    if args.ends and any(0 < depth < N_BATCH for depth in depths):
        parser.error(f"--ends needs a --depth of 0, or of {N_BATCH} and more")
    names = args.cache or ["q8_0", "q4_0", "q8_0/q4_0", "q3_nl/q2_nl", "paper"]
    wanted = caches(names, model_shape(read_model(args.model)).n_layer, args.ends)
    for n_threads in args.threads or [1, 2]:
        print(f"{args.model.name}, {n_threads} threads, {args.rounds} rounds: tokens per second and ratio to the base")
        with (
            open_model(args.model, n_threads) as model,
            sequences(model, wanted, max(depths) + N_BATCH) as all_of_them,
        ):
            for depth in depths:
                measure(all_of_them, depth, args.prefill, args.decode, args.rounds)


if __name__ == "__main__":
    main()
