"""The devices that a tuning is to run on, one process on each."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from kvtuner_gguf.errors import KvtunerError

VISIBLE = "CUDA_VISIBLE_DEVICES"
# what torch runs on without CUDA
_OTHERS = ("cpu", "mps")
# of which one is there where torch has a GPU on Linux: NVIDIA's, its own boards', WSL's, AMD's
_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
_COUNT = "from kvtuner_gguf.engine.llama.devices import n_cuda; print(n_cuda())"


class Device(NamedTuple):
    """``name`` is torch's; ``visible`` is the one GPU, as CUDA calls it, that a process with llama.cpp may see."""

    name: str
    visible: str | None = None

    @property
    def in_engine(self) -> str:
        """As an engine calls it: llama.cpp takes the one that it sees."""
        return self.name if self.visible is None else "cpu"


def chosen_devices(device: str, n_gpus: int | None, engine: str) -> list[Device]:
    """Those of ``--device`` A,B,... or ``--gpus``, of which this process takes the first.

    llama.cpp spreads a model over all GPUs that it sees, so from here on this process sees that one alone; it is to be
    loaded after this. Torch is not imported: how many GPUs it has `check_torch_has` asks.
    Raises `KvtunerError` where a device is not there, or named twice.
    """
    names = _names(device, n_gpus)
    option = "--device" if n_gpus is None else "--gpus"
    if names[0] in _OTHERS:
        return [Device(name) for name in names]
    for name in names:
        _index(name)
    if engine != "llama":
        if why := _torch_without_cuda():
            raise KvtunerError(f"{option} names {names[0]}, and {why}: give --device cpu")
        return [Device(name) for name in names]
    _check_there(names, _n_llama(), option)
    known = os.environ.get(VISIBLE)
    ids = [known.split(",")[_index(name)] if known else str(_index(name)) for name in names]
    os.environ[VISIBLE] = ids[0]
    return [Device(name, visible) for name, visible in zip(names, ids, strict=True)]


def _names(device: str, n_gpus: int | None) -> list[str]:
    if n_gpus is not None:
        if device != "cpu":
            raise KvtunerError(f"--gpus {n_gpus} and --device {device} both name devices: give one of them")
        if n_gpus < 1:
            raise KvtunerError(f"--gpus is {n_gpus}: give 1 or more, or leave it out for the CPU")
        return [f"cuda:{i}" for i in range(n_gpus)]
    names = [name.strip() for name in device.split(",")]
    if not all(names):
        raise KvtunerError(f"--device {device!r} has an empty name: give cpu, cuda, or GPUs such as cuda:0,cuda:1")
    if len(names) == 1:
        return names
    names = ["cuda:0" if name == "cuda" else name for name in names]
    if len({name.partition(":")[0] for name in names}) > 1:
        raise KvtunerError(f"--device {device}: they do not measure alike: name devices of one kind")
    twice = next((name for name in names if name != "cpu" and names.count(name) > 1), None)
    if twice is not None:
        raise KvtunerError(f"--device {device}: {twice} is named twice: a GPU has room for one process, name it once")
    return names


def check_torch_has(devices: Sequence[Device]) -> None:
    """Raise `KvtunerError` where torch, which is imported here, does not find one of ``devices``."""
    names = [device.name for device in devices if device.name not in _OTHERS]
    if names:
        _check_there(names, _n_torch(), "--device")


def _check_there(names: list[str], n_there: int, option: str) -> None:
    for name in names:
        if n_there == 0:
            raise KvtunerError(f"{option} names {name}, and no GPU is found here: give --device cpu")
        if _index(name) >= n_there:
            there = "is 1 GPU" if n_there == 1 else f"are {n_there} GPUs"
            raise KvtunerError(f"{option} names {name}, and there {there}: name fewer, or give --device cpu")


def _index(name: str) -> int:
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise KvtunerError(f"unknown device {name!r}: give cpu, cuda, or a GPU such as cuda:1")
    return int(index or 0)


def _torch_without_cuda() -> str | None:
    """Why torch cannot have a GPU, as far as that is known without importing it; None where it may."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:  # told with all else that is to be installed
        return None
    if version.endswith("+cpu"):
        return f"torch {version} is built for the CPU alone"
    is_there = sys.platform != "linux" or any(os.path.exists(path) for path in _DRIVERS)
    return None if is_there else "no GPU is found here"


def _n_torch() -> int:
    import torch

    return torch.cuda.device_count()


def _n_llama() -> int:
    """As another process finds: the library is to be loaded into this one with one GPU to see."""
    if "llama_cpp" in sys.modules:
        raise KvtunerError("llama.cpp is loaded already, with the GPUs of before: tune in a process of its own")
    found = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=False)
    return int(found.stdout) if found.returncode == 0 else 0
