"""The libraries of the wheel as a process sees them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import llama_cpp
import pytest

pytestmark = pytest.mark.native

FILES = sorted((Path(llama_cpp.__file__).parent / "lib").glob("lib*.so"))


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="reads symbols with nm on Linux")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_library_hands_out_a_cpp_library_of_its_own(file: Path) -> None:
    # Where the compiler links libstdc++ statically, others would take some of its symbols here and some elsewhere,
    # and the tokenizer crash.
    symbols = subprocess.run(["nm", "-D", "--defined-only", file], capture_output=True, text=True, check=True).stdout

    assert " ggml_" in symbols or " llama_" in symbols or " mtmd_" in symbols
    assert "_ZNSt6locale" not in symbols
