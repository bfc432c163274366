"""The cache types q2_nl and q3_nl in the built library, and that they stay out of model files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from build_folders import build_folder, installed_folder

from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.server.llama_server import find_tool

pytestmark = pytest.mark.native

BUILD = installed_folder()


def test_blocks_dot_products_and_errors() -> None:
    done = subprocess.run([BUILD / "kvtuner-test-lowbit"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 failures"), done.stdout


def test_cuda_kernels_on_the_cpu_store_what_the_reference_stores() -> None:
    done = subprocess.run([BUILD / "kvtuner-test-cuda-lowbit"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 failures"), done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("op", ["SET_ROWS", "GET_ROWS", "CPY"])
def test_upstreams_cases_on_a_gpu(op: str) -> None:
    program = build_folder("cuda") / "bin" / "test-backend-ops"
    command = [program, "test", "-b", "CUDA0", "-o", op, "-p", "q[23]_nl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    passed, n_cases = re.search(r"(\d+)/(\d+) tests passed", done.stdout).groups()
    assert passed == n_cases != "0"


@pytest.mark.model
@pytest.mark.parametrize("name", ["q2_nl", "q3_nl"])
def test_no_model_file_is_written_in_them(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    command = [find_tool("llama-quantize"), "--allow-requantize", "--token-embedding-type", name]
    command += [fetch_model("smollm2-135m"), out, "Q8_0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert f"invalid ggml_type '{name}'" in done.stderr
    assert not out.exists()


def test_no_model_file_is_read_in_them(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    raw = bytearray(path.read_bytes())
    name = raw.index(b"token_embd.weight")
    type_at = name + len(b"token_embd.weight") + 4 + 2 * 8
    assert raw[type_at : type_at + 4] == (0).to_bytes(4, "little")
    raw[type_at : type_at + 4] = (43).to_bytes(4, "little")
    path.write_bytes(raw)
    done = subprocess.run([find_tool("llama-cli"), "-m", path, "-p", "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "has invalid ggml type 43. should be in [0, 43)" in done.stdout + done.stderr
