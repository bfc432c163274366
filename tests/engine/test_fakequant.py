"""Fake quantization against the built library: the write path of the CPU cache, then the common read path."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.fakequant import fake_quantize  # noqa: E402
from kvtuner_gguf.errors import KvtunerError  # noqa: E402
from kvtuner_gguf.plan.cachetypes import CACHE_TYPES, cache_type  # noqa: E402

ROW = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Traits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


def score(cpu: ctypes.CDLL) -> int:
    """Of a variant how well it suits this machine, 0 if it does not run; a CPU back end without variants runs."""
    return cpu.ggml_backend_score() if hasattr(cpu, "ggml_backend_score") else 1


@pytest.fixture(scope="module")
def ggml() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    base = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    cpu = max((ctypes.CDLL(str(path)) for path in folder.glob("libggml-cpu*")), key=score)
    base.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    cpu.kvtuner_from_float.restype = ctypes.c_void_p
    cpu.ggml_cpu_init()
    return base, cpu


def through_ggml(ggml: tuple[ctypes.CDLL, ctypes.CDLL], x: np.ndarray, name: str, is_key: bool = True) -> np.ndarray:
    base, cpu = ggml
    kind = cache_type(name)
    raw, y = ctypes.create_string_buffer(kind.row_bytes(x.size)), np.empty_like(x)
    assert base.ggml_get_type_traits(kind.ggml_type).contents.type_name == name.encode()
    write = cpu.kvtuner_from_float(kind.ggml_type, not is_key)
    read = base.ggml_get_type_traits(kind.ggml_type).contents.to_float
    ROW(write)(x.ctypes.data, ctypes.addressof(raw), x.size)
    ROW(read)(ctypes.addressof(raw), y.ctypes.data, x.size)
    return y


def rows(kind: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((4000, 64))
    made = {
        "normal": normal,
        "large": normal * 1e4,
        "small": normal * 1e-6,
        "tiny": normal * 1e-30,
        "denormal": normal * 1e-41,
        "heavy tails": rng.standard_t(1.5, (4000, 64)),
        "ties": rng.integers(-8, 9, (4000, 64)) / 2,
        "constant": np.full((4, 64), 3.3),
        "zero": np.zeros((4, 64)),
        "one value": np.eye(64) * -5,
        "infinite": np.where(np.eye(64), np.inf, normal[:64]),
    }
    return made[kind].astype(np.float32)


KINDS = ["normal", "large", "small", "tiny", "denormal", "heavy tails", "ties", "constant", "zero", "one value"]
OURS = ("q3_nl", "q2_nl")


@pytest.mark.native
@pytest.mark.parametrize("name", [name for name in CACHE_TYPES if name != "f32"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_value_is_that_of_the_library(name: str, kind: str, ggml: tuple[ctypes.CDLL, ctypes.CDLL]) -> None:
    x = rows(kind)
    ours = fake_quantize(torch.from_numpy(x), name).numpy()
    assert np.array_equal(ours, through_ggml(ggml, x, name))


@pytest.mark.native
@pytest.mark.parametrize("is_key", [True, False], ids=["key", "value"])
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("kind", [*KINDS, "infinite"])
def test_each_side_of_our_types_is_that_of_the_library(
    name: str, kind: str, is_key: bool, ggml: tuple[ctypes.CDLL, ctypes.CDLL]
) -> None:
    x = rows(kind)
    ours = fake_quantize(torch.from_numpy(x), name, is_key).numpy()
    assert np.array_equal(ours, through_ggml(ggml, x, name, is_key))


@pytest.mark.parametrize("name", OURS)
def test_values_have_no_bias_and_keys_half_of_it(name: str) -> None:
    """Of each block, but for the rounding of the scale: <x, y> is <x, x> of values; least squares has <y, y>."""
    x = torch.from_numpy(rows("normal"))
    keys, values = (fake_quantize(x, name, is_key).double() for is_key in (True, False))
    levels, exact = values / values.abs().amin(-1, keepdim=True), x.double()
    assert torch.equal(levels.sign(), keys.sign())
    share = (exact * values).sum(-1) / exact.square().sum(-1)
    assert torch.allclose(share, torch.ones_like(share), rtol=0, atol=2**-11)
    fitted = levels * ((exact * levels).sum(-1) / levels.square().sum(-1))[:, None]
    assert torch.allclose(keys, (fitted + values) / 2, rtol=2**-9, atol=0)


@pytest.mark.parametrize("name", [name for name in CACHE_TYPES if name not in OURS])
def test_other_types_have_no_sides(name: str) -> None:
    x = torch.from_numpy(rows("normal"))
    assert torch.equal(fake_quantize(x, name, True), fake_quantize(x, name, False))


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_more_bits_lose_less(name: str) -> None:
    x = torch.from_numpy(rows("normal"))
    error = (fake_quantize(x, name) - x).square().mean().item()
    limits = {"f32": 0, "f16": 1e-7, "bf16": 1e-5, "q8_0": 4e-5, "q5_1": 2e-3, "q5_0": 3e-3, "q4_1": 8e-3}
    limits |= {"q3_nl": 0.0345, "q2_nl": 0.1175}  # those of Lloyd-Max
    assert error <= limits.get(name, 1.1e-2)


def test_blocks_must_fit() -> None:
    with pytest.raises(KvtunerError, match="80"):
        fake_quantize(torch.zeros(2, 80), "q8_0")
