"""What a program calls: `tune` and `evaluate`, each as the command of that name, with its defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kvtuner_gguf.engine.devices import chosen_devices
from kvtuner_gguf.engine.llama.devices import offered_backend
from kvtuner_gguf.engine.opening import check_engine, engine_on_gpus, open_engines
from kvtuner_gguf.engine.torch.install import import_torch
from kvtuner_gguf.errors import about
from kvtuner_gguf.evaluation import by_either
from kvtuner_gguf.evaluation.chunks import Sample, read_text
from kvtuner_gguf.evaluation.rows import Row
from kvtuner_gguf.files.assets import TUNING_TEXT, fetch_text
from kvtuner_gguf.gguffile.chosen_ends import chosen_ends
from kvtuner_gguf.gguffile.fit import fitted
from kvtuner_gguf.gguffile.metadata import centering_obstacle, model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.backends import chosen_backend
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.tuning.goal import DEFAULT_BITS, Goal
from kvtuner_gguf.tuning.settings import Settings, check_goal
from kvtuner_gguf.tuning.texts import Texts
from kvtuner_gguf.tuning.work import facts_of


def tune(
    model: Path | str,
    bits: float = DEFAULT_BITS,
    *,
    backend: str | None = None,
    candidates: Sequence[str] = (),
    text: Path | str | None = None,
    tokens: int = 1024,
    ctx: int = 512,
    seed: int = 0,
    center: bool = True,
    ends: str | None = None,
    for_ctx: int | None = None,
    windows: str = "auto",
    engine: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    work: Path | str | None = None,
) -> Plan:
    """The plan of least KLD for the GGUF ``model`` within ``bits`` true bits per cached value.

    ``backend`` or ``candidates`` say which cache types may be used, by default those that the first GPU of the built
    llama.cpp runs fast, or the CPU where there is none; ``text`` is UTF-8 to calibrate on, by default a web
    text that is fetched once, of which ``tokens`` are taken in chunks of ``ctx``; the same ``seed`` gives the same
    plan. Keys are centered unless ``center`` is false or the model forbids it. ``ends``, such as ``"4+128:q8_0"``, the
    default, or ``"none"``, are read exactly, and count in the bits of a context of ``for_ctx`` tokens. Layers with a
    sliding window are left at f16 where all of them take at most 5 % of the budget, unless ``windows`` is ``"search"``
    or ``"f16"``.
    The ``engine``, ``"torch"`` on ``device`` or the built llama.cpp, ``"llama"``, runs with ``threads``; ``"auto"`` is
    torch where it has the architecture and the memory. Several devices, such as ``"cuda:0,cuda:1"``, share the layers,
    each in a process of its own: a script then needs the guard of `multiprocessing`, ``if __name__ == "__main__"``.
    The folder ``work`` keeps what is finished, so that an interrupted call goes on there.

    Raises `KvtunerError` where the engine cannot load the model, no plan fits, or what tuning needs is not installed.
    """
    headers = read_model(model)
    devices = chosen_devices(device, None, engine_on_gpus(headers, engine))
    shape = model_shape(headers)
    settings = Settings(
        goal=Goal(bits, n_ctx=for_ctx),
        backend=chosen_backend(backend, candidates, offered_backend()),
        n_tokens=tokens,
        n_ctx=ctx,
        seed=seed,
        center=center and centering_obstacle(headers) is None,
        ends=chosen_ends(ends, shape),
        windows=windows,
    )
    check_goal(settings, shape)
    check_engine(Path(model), headers, engine, devices[0].in_engine)
    texts = None if text is None else Texts((Path(text),), (1.0,))
    if texts is not None:
        texts.check_long_enough(tokens, ctx)
    import_torch(threads)
    from kvtuner_gguf.tuning.crew import Crew
    from kvtuner_gguf.tuning.tuner import Tuner

    texts = texts or Texts((fetch_text(TUNING_TEXT),), (1.0,))
    folder = None if work is None else Path(work)
    opened, helpers = open_engines(Path(model), shape, devices, threads, engine, facts_of(folder))
    with Crew(helpers) as crew:
        return Tuner(opened, texts, settings, folder, crew=crew).run().plan


def evaluate(
    model: Path | str,
    caches: Mapping[str, Pair | Plan],
    *,
    text: Path | str | None = None,
    ctx: int = 512,
    chunks: int = 8,
    evaluator: str = "native",
    start_pos: int = 0,
    threads: int | None = None,
) -> list[Row]:
    """How far each of ``caches``, by name, is from the f16 cache of the GGUF ``model``, which is the first row.

    ``chunks`` of ``ctx`` tokens from the start of the UTF-8 ``text``, by default an encyclopedia text that is fetched
    once, are judged by the built llama.cpp (``"native"``) or by the reference (``"torch"``), by the latter
    also from position ``start_pos``. KLDs in nats per token.

    Raises `KvtunerError` naming the cache that does not fit the model, or where the evaluator is not there.
    """
    headers = read_model(model)
    fitting = {name: _fitted(name, cache, headers) for name, cache in caches.items()}
    sample = Sample(read_text(None if text is None else Path(text)), ctx, chunks, start_pos)
    return by_either.evaluate(evaluator, Path(model), model_shape(headers), fitting, sample, threads)


def _fitted(name: str, cache: Pair | Plan, headers: list) -> Pair | Plan:
    with about(name):
        return fitted(cache, headers) if isinstance(cache, Plan) else cache
