"""Upstream's Metal host code with the emulator as a back end that ggml's programs load."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.metal.library import CACHE, COMMON, HERE, ROOT, UPSTREAM, build, compiler, run_compiler
from tests.metal.source import host_names

METAL = UPSTREAM / "ggml-metal"
CPP = ROOT / "cpp"
OURS = CPP / "metal"
HOST = (
    "ggml-metal",
    "ggml-metal-device",
    "ggml-metal-ops",
    "ggml-metal-common",
    "ggml-metal-fusion",
    "ggml-metal-tuning",
)
DEFINES = ("GGML_BACKEND_DL", "GGML_BACKEND_BUILD", "GGML_BACKEND_SHARED", "GGML_SHARED", "GGML_METAL_NDEBUG")
TEXTS = ('GGML_VERSION="emulated"', 'GGML_COMMIT="emulated"')
FIRST, LAST = "static bool ggml_metal_supports_mul_mat_op(", "bool ggml_metal_device_supports_op("


def supported_operations() -> str:
    """What upstream's device says that it can do: the functions out of its Objective-C file.

    Raises `ValueError` where they are not there.
    """
    text = (METAL / "ggml-metal-device.m").read_text()
    return text[text.index(FIRST) : text.index(LAST)] + function_of_device(LAST)


def function_of_device(beginning: str) -> str:
    """The function of upstream's Objective-C file that begins so. Raises `ValueError` where it is not there."""
    text = (METAL / "ggml-metal-device.m").read_text()
    begin = text.index(beginning)
    return text[begin : text.index("\n}\n", begin) + 3]


def build_backend(libraries: Path) -> Path:
    """The back end, for ``GGML_BACKEND_PATH``; ``libraries`` is the folder of libggml-base."""
    own = sorted((HERE / "backend").iterdir())
    ours = sorted(path for name in ("metal", "graph", "format") for path in (CPP / name).iterdir())
    upstream = [*(METAL / f"{name}.cpp" for name in HOST), *METAL.glob("*.[hm]")]
    sources = [*own, HERE / "emulator" / "dispatch.h", *upstream, *ours]
    parts = [repr((COMMON, DEFINES, str(libraries), compiler())).encode(), *(path.read_bytes() for path in sources)]
    made = CACHE / f"backend-{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}"
    library = made / "libggml-metal-emulated.so"
    if not library.exists():
        made.mkdir(parents=True, exist_ok=True)
        (made / "supports_op.inc").write_text(supported_operations())
        embed_texts(made / "kvtuner-metal-texts.inc")
        folders = [CPP / name for name in ("metal", "graph", "format", "device")]
        includes = [made, HERE / "emulator", *folders, METAL, UPSTREAM, UPSTREAM.parent / "include"]
        options = [*COMMON, "-O1", "-w", "-include", "memory", *(f"-I{path}" for path in includes)]
        options += [f"-D{define}" for define in DEFINES + TEXTS]
        files = [path for path in sources if path.suffix == ".cpp" and path.parent != CPP / "format"]
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda path: _compile(path, options, made), files))
        link = ["-shared", *objects, f"-L{libraries}", "-lggml-base", f"-Wl,-rpath,{libraries}", "-ldl"]
        run_compiler([*link, "-o", f"{library}.tmp"])
        Path(f"{library}.tmp").rename(library)
    return library


def embed_texts(made: Path) -> None:
    """Writes the texts of our kernels as the build does."""
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"
    values = [f"-DKVTUNER_METAL_UPSTREAM={UPSTREAM}", f"-DKVTUNER_METAL_OUT={made}"]
    subprocess.run([cmake, *values, "-P", str(OURS / "embed.cmake")], check=True)


def _compile(path: Path, options: list[str], folder: Path) -> str:
    made = str(folder / f"{path.stem}.o")
    run_compiler([*options, "-c", str(path), "-o", made])
    return made


def environment(libraries: Path, order: str) -> dict[str, str]:
    """What a program needs to load the back end, with lanes in ``order``."""
    return {
        "GGML_BACKEND_PATH": str(build_backend(libraries)),
        "KVTUNER_METAL_COMPILE": f"{sys.executable} -m tests.metal.backend",
        "KVTUNER_METAL_TEXTS": str(CACHE / "texts"),
        "KVTUNER_METAL_ORDER": order,
        "LLAMA_TEST_FA_VEC_DISABLE": "1",  # test-backend-ops' cases of long caches take hours here
    }


def main(kernel: str, text: Path | None = None) -> None:
    """Compiles ``kernel``, of a ``text`` that includes nothing or of upstream's, and prints where its library is."""
    has_bfloat = "bfloat" not in os.environ.get("KVTUNER_METAL_LACKS", "")
    if text:
        print(build(text, [kernel], has_bfloat=has_bfloat))
        return
    for path in sorted((METAL / "kernels").glob("*.metal")):
        if kernel in host_names(path.read_text()):
            print(build(path, [kernel], has_bfloat=has_bfloat))
            return
    sys.exit(f"no kernel {kernel}")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:3]))
