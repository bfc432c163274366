"""Tiny random models, one or two of every architecture that upstream's own test can write.

``python tests/native/archs.py FOLDER`` writes them as files.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WRITER = Path(__file__).resolve().parents[2] / "build" / "cpu" / "bin" / "test-llama-archs"
SEED = "1"
# Standard deviation of the weights: with upstream's 0.1 attention is so even that errors in K hardly show in the
# logits; a model that runs its layers over and over is chaotic with more.
STDEV = {"": "0.3", "hrm_text": "0.1"}


def write_models(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for arch, stdev in STDEV.items():
        only = ["-a", arch] if arch else []
        subprocess.run([WRITER, "-s", SEED, "-d", stdev, *only, "-o", folder], check=True, capture_output=True)
    return folder


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
