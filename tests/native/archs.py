"""Tiny random models, one or two of every architecture that upstream's own test can write.

``python tests/native/archs.py FOLDER`` writes them as files.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
from build_folders import installed_folder

WRITER = installed_folder() / "bin" / "test-llama-archs"
SEED = "1"
# Standard deviation of the weights: with upstream's 0.1 attention is so even that errors in K hardly show in the
# logits; a model that runs its layers over and over is chaotic with more.
STDEV = {"": "0.3", "hrm_text": "0.1"}


# Upstream writes no draft layers: the attention layer of qwen35 over again, with what a draft layer has beside it.
N_LAYER, N_EMBD = 2, 256
DRAFT_FIELDS = {
    "qwen35.block_count": N_LAYER + 1,
    "qwen35.nextn_predict_layers": 1,
    "qwen35.attention.recurrent_layers": [1, 0, 0],
    "qwen35.swiglu_clamp_exp": [0.0] * 3,
    "qwen35.swiglu_clamp_shexp": [0.0] * 3,
}


def write_model_with_draft_layer(source: Path, path: Path) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "qwen35")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture" and len(field.data):
            element = field.types[-1] if len(field.types) > 1 else None
            value = DRAFT_FIELDS.get(name, field.contents())
            writer.add_key_value(name, value, field.types[0], sub_type=element)
    last = f"blk.{N_LAYER - 1}."
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
        if tensor.name.startswith(last) and not tensor.name.endswith("scale"):
            writer.add_tensor(f"blk.{N_LAYER}." + tensor.name.removeprefix(last), tensor.data)
    rng = np.random.default_rng(0)
    for name, shape in (("eh_proj", (N_EMBD, 2 * N_EMBD)), ("enorm", (N_EMBD,)), ("hnorm", (N_EMBD,))):
        values = rng.normal(scale=float(STDEV[""]), size=shape).astype(np.float32)
        writer.add_tensor(f"blk.{N_LAYER}.nextn.{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_models(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for arch, stdev in STDEV.items():
        only = ["-a", arch] if arch else []
        subprocess.run([WRITER, "-s", SEED, "-d", stdev, *only, "-o", folder], check=True, capture_output=True)
    write_model_with_draft_layer(folder / "qwen35-dense.gguf", folder / "qwen35_with_draft-dense.gguf")
    return folder


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
