"""The emulator's tests need clang: they are left out where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.metal.attention import HELPERS, KERNELS
from tests.metal.library import CLANG, HERE, WHEEL, build, compiler
from tests.metal.source import host_names

FAULTS = HERE / "kernels" / "faults.metal"
VECTOR = ("dk64_dv64", "dk64_dv64_q4_ne2", "dk128_dv128", "dk128_dv128_q1_ne2", "dk128_dv128_q1_ne4")
TWO_QUERIES = "dk128_dv128_q2_ne2"
MATRIX = ("dk64_dv64", "dk128_dv128")
CACHE_TYPES = ("f16", "q8_0", "q4_0")

Library = Callable[[str], Path]


@pytest.fixture(autouse=True, scope="session")
def _clang() -> None:
    if compiler() is None:
        pytest.skip(f"the emulator of Metal needs clang: pip install {WHEEL}, or a package with {CLANG}")
    if not KERNELS.is_dir():
        pytest.skip(f"the emulator of Metal needs upstream's kernels in {KERNELS}: make build")


@pytest.fixture(scope="session")
def faults(_clang: None) -> Path:
    return build(FAULTS, host_names(FAULTS.read_text()))


@pytest.fixture(scope="session")
def libraries(_clang: None) -> dict[str, Path]:
    """All that the tests of attention run, compiled side by side, by the stem of its file."""
    wanted = {"fa_aux": HELPERS}
    for kind in CACHE_TYPES:
        more = (TWO_QUERIES,) if kind == "q8_0" else ()
        wanted[f"fa_vec_{kind}"] = [f"kernel_flash_attn_ext_vec_{kind}_{shape}" for shape in VECTOR + more]
        wanted[f"fa_{kind}"] = [f"kernel_flash_attn_ext_{kind}_{shape}" for shape in MATRIX]
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda stem: build(KERNELS / f"{stem}.metal", wanted[stem]), wanted)
        return dict(zip(wanted, made, strict=True))
