"""What KVTUNER_CPU makes of the CPU back end, and that our kernels compile for each variant."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from build_folders import ROOT, build_folder, installed_folder

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 variants"),
]

KERNELS = {ROOT / "cpp" / "cpu", ROOT / "cpp" / "graph"}
AVX2 = {"-msse4.2", "-mf16c", "-mfma", "-mbmi2", "-mavx", "-mavx2"}
AVX512 = AVX2 | {"-mavx512f", "-mavx512cd", "-mavx512vl", "-mavx512dq", "-mavx512bw"}


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-Wno-dev", "-DKVTUNER_TOOLS=OFF", *options]
    command.append("-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def read_commands(folder: Path) -> list[dict[str, str]]:
    return json.loads((folder / "compile_commands.json").read_text())


def output_of(entry: dict[str, str]) -> str:
    """What the command writes; the entry itself tells it from CMake 3.27 on."""
    words = shlex.split(entry["command"])
    return words[words.index("-o") + 1]


def flags(folder: Path, source: str = "kvtuner-attention-tile.cpp") -> dict[str, set[str]]:
    """The options for a kernel that choose instructions, by target."""
    found = {}
    for entry in read_commands(folder):
        if entry["file"].endswith(source):
            target = output_of(entry).partition("CMakeFiles/")[2].partition(".dir")[0]
            found[target] = {word for word in entry["command"].split() if word.startswith("-m")}
    return found


def test_all_variants_have_our_kernels_with_their_own_instructions(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DKVTUNER_CPU=all")
    assert done.returncode == 0, done.stderr
    found = flags(tmp_path)
    assert len(found) == 14
    assert found["ggml-cpu-x64"] == set()
    assert found["ggml-cpu-haswell"] == AVX2
    assert found["ggml-cpu-skylakex"] == AVX512
    assert {"-mamx-tile", "-mamx-int8"} < found["ggml-cpu-sapphirerapids"]


def test_our_kernels_compile_for_every_variant(tmp_path: Path) -> None:
    """Without optimizing, which takes a tenth of the time; intrinsics that a variant lacks are errors all the same."""
    assert configure(tmp_path, "-DKVTUNER_CPU=all").returncode == 0
    commands = [entry for entry in read_commands(tmp_path) if Path(entry["file"]).parent in KERNELS]
    assert len(commands) > 14 * 5

    def compiled(entry: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [*shlex.split(entry["command"]), "-O0", "-o", os.devnull]
        return subprocess.run(command, cwd=entry["directory"], capture_output=True, text=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for entry, done in zip(commands, pool.map(compiled, commands), strict=True):
            assert done.returncode == 0, f"{output_of(entry)}:\n{done.stderr[-3000:]}"


def test_upstreams_own_options_for_it_are_enough(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON")
    assert done.returncode == 0, done.stderr
    assert len(flags(tmp_path)) == 14


@pytest.mark.parametrize(("cpu", "wanted"), [("haswell", AVX2), ("x86-64-v3", AVX2), ("x86-64-v4", AVX512)])
def test_a_named_processor_has_exactly_its_instructions(cpu: str, wanted: set[str], tmp_path: Path) -> None:
    assert configure(tmp_path, f"-DKVTUNER_CPU={cpu}").returncode == 0
    assert flags(tmp_path) == {"ggml-cpu": wanted}


def test_a_folder_may_change_its_processor(tmp_path: Path) -> None:
    for cpu, wanted in (("all", None), ("haswell", AVX2), ("native", {"-march=native"}), ("x86-64-v2", {"-msse4.2"})):
        assert configure(tmp_path, f"-DKVTUNER_CPU={cpu}").returncode == 0
        assert wanted is None or flags(tmp_path) == {"ggml-cpu": wanted}


def test_an_unknown_processor_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DKVTUNER_CPU=nonsense")
    assert done.returncode != 0
    words = " ".join(done.stderr.split())
    assert "KVTUNER_CPU is 'nonsense': use native, all, x86-64-v1 to x86-64-v4" in words
    assert "haswell, skylakex" in words


def test_arm_takes_what_march_takes(tmp_path: Path) -> None:
    cross = (
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY",
    )
    done = configure(tmp_path, *cross, "-DKVTUNER_CPU=armv8.2-a+dotprod+fp16")
    assert done.returncode == 0, done.stderr
    assert flags(tmp_path) == {"ggml-cpu": {"-march=armv8.2-a+dotprod+fp16"}}
    done = configure(tmp_path / "all", *cross, "-DKVTUNER_CPU=all")
    assert done.returncode == 0, done.stderr
    assert "ggml-cpu-armv8.6_2" in flags(tmp_path / "all")


def test_each_processor_has_a_folder_of_its_own() -> None:
    assert build_folder("cpu") == ROOT / "build" / "cpu"
    assert build_folder("cuda", "haswell") == ROOT / "build" / "cuda-haswell"
    assert (installed_folder() / "bin" / "llama-server").exists()
