"""Which back end is offered, by the names of devices; the build itself has a CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from kvtuner_gguf.engine.llama import devices

CPU, GPU, IGPU = 0, 1, 2


def library(*found: tuple[str, int]) -> SimpleNamespace:
    def function(of: Callable[..., object]) -> SimpleNamespace:
        return type("Function", (SimpleNamespace,), {"__call__": lambda self, *args: of(*args)})()

    return SimpleNamespace(
        ggml_backend_dev_count=function(lambda: len(found)),
        ggml_backend_dev_get=function(lambda i: i),
        ggml_backend_dev_type=function(lambda device: found[device][1]),
        ggml_backend_dev_name=function(lambda device: found[device][0].encode()),
    )


@pytest.mark.parametrize(
    ("found", "backend"),
    [
        ((("CPU", CPU),), "cpu"),
        ((("CUDA0", GPU), ("CUDA1", GPU), ("CPU", CPU)), "cuda"),
        ((("Vulkan0", IGPU), ("CPU", CPU)), "vulkan"),
        ((("MTL0", GPU), ("CPU", CPU)), "metal"),
        ((("SYCL0", GPU), ("CPU", CPU)), "cpu"),
        ((), "cpu"),
    ],
)
def test_the_first_gpu_gives_the_back_end(
    monkeypatch: pytest.MonkeyPatch, found: tuple[tuple[str, int], ...], backend: str
) -> None:
    module = SimpleNamespace(libggml=library(*found))
    monkeypatch.setattr(importlib, "import_module", lambda _: module)
    assert devices.offered_backend() == backend


def test_without_a_build_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ImportError

    monkeypatch.setattr(importlib, "import_module", missing)
    assert devices.offered_backend() == "cpu"
