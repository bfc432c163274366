"""A torch model and tokenizer from a GGUF file, refused where transformers would leave out part of the file."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGUFReader, ReaderTensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from kvtuner_gguf.errors import KvtunerError

ROPE_FACTORS = "rope_freqs.weight"
REMEDY = "give --engine llama, which runs any model that llama.cpp runs"


def load(path: Path, architecture: str) -> tuple[Any, Any]:
    """The float32 model and its tokenizer, from the one file ``path``, without a look at any network.

    Raises `KvtunerError` where transformers cannot load the file or takes other tensors than it has.
    """
    with _read_once() as read:
        model, tokenizer, missing = _from_transformers(path)
        reader = read(str(path))
    if missing:
        raise _refused(path, f"it has no {sorted(missing)[0]}; a split model must be merged into one file first")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _apply_rope_factors(model, tensors.pop(ROPE_FACTORS, None))
    _check_all_taken(path, model, tensors)
    _check_rope(path, reader, architecture)
    return model.eval(), tokenizer


@contextmanager
def _read_once() -> Generator[Callable[[str], GGUFReader]]:
    """A reader of files that transformers has, too, for a while.

    It would parse the file, and every token's name in it, three times, and list the names of all tensors once for each
    module: most of the time that a small model takes to load.
    """
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(functools.cache, before)
    try:
        yield gguf.GGUFReader
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before


def _from_transformers(path: Path) -> tuple[Any, Any, set[str]]:
    transformers_logging.set_verbosity_error()
    folder, name = str(path.parent), path.name
    try:
        with redirect_stderr(io.StringIO()):  # transformers shows bars of its own
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=name,
                dtype=torch.float32,
                local_files_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as err:
        raise _refused(path, str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__) from err
    model, info = loaded
    return model, tokenizer, set(info["missing_keys"])


def _apply_rope_factors(model: Any, factors: ReaderTensor | None) -> None:
    """Llama 3.1 and later carry their RoPE scaling as a tensor of divisors, which transformers leaves out."""
    if factors is not None:
        rope = model.model.rotary_emb
        rope.inv_freq = rope.inv_freq / torch.from_numpy(factors.data.astype("float32"))


def _check_all_taken(path: Path, model: Any, tensors: dict[str, ReaderTensor]) -> None:
    taken = sum(parameter.numel() for parameter in model.parameters())
    there = sum(int(tensor.n_elements) for tensor in tensors.values())
    if taken != there:
        raise _refused(path, f"its model takes {taken} of the file's {there} values")


def _check_rope(path: Path, reader: GGUFReader, architecture: str) -> None:
    scaling = reader.get_field(f"{architecture}.rope.scaling.type")
    if scaling is not None and scaling.contents() != "none":
        raise _refused(path, f"it leaves out the RoPE scaling {scaling.contents()!r}")


def _refused(path: Path, reason: str) -> KvtunerError:
    return KvtunerError(f"{path}: torch cannot load this model ({reason}): {REMEDY}")
