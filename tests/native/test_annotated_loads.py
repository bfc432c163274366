"""What `annotate` accepts the library loads, with the plan; what the library cannot read `annotate` refuses."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.annotate import annotate, strip
from kvtuner_gguf.gguffile.reader import read_gguf
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.native.archs import SEED, WRITER
from tests.native.corpus import name
from tests.native.test_runtime import tool

pytestmark = pytest.mark.native

PLAN = Plan((Pair.parse("q8_0/q4_0"), Pair.parse("q5_1/f16")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 2 layers with heads of 128."""
    folder = tmp_path_factory.mktemp("source")
    command = [WRITER, "-s", SEED, "-a", "llama", "-o", folder]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "llama-dense.gguf"


def loads(path: Path) -> bool:
    return tool("llama-bench", "-m", path, "-p", 4, "-n", 0, "-r", 1, "--no-warmup").returncode == 0


def aligned(source: Path, path: Path, alignment: int) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and len(field.data):
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=element)
    writer.add_custom_alignment(alignment)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("alignment", [1, 4, 16, 64, 256, 65536])
def test_any_alignment_of_llama_cpp(alignment: int, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    aligned(source, path, alignment)
    annotate(path, PLAN, tmp_path / "out.gguf")
    assert read_gguf(tmp_path / "out.gguf").alignment == alignment
    assert loads(tmp_path / "out.gguf")
    strip(tmp_path / "out.gguf", tmp_path / "stripped.gguf")
    assert (tmp_path / "stripped.gguf").read_bytes() == path.read_bytes()


def with_field(raw: bytes, source: Path, field: bytes) -> bytes:
    header = read_gguf(source)
    n_fields = struct.pack("<Q", len(header.fields) + 1)
    start = raw[:16] + n_fields + raw[24 : header.fields_end] + field + raw[header.fields_end : header.infos_end]
    return start + bytes(-len(start) % header.alignment) + raw[header.data_start :]


def replaced(old: bytes, new: bytes) -> Callable[[bytes, Path], bytes]:
    def change(raw: bytes, _: Path) -> bytes:
        assert raw.count(old) == 1
        return raw.replace(old, new)

    return change


NORM = b"blk.0.attn_norm.weight" + struct.pack("<IQ", 1, 256)
REFUSED: dict[str, tuple[Callable[[bytes, Path], bytes], str]] = {
    "empty key": (lambda raw, source: with_field(raw, source, name("", "x")), "has no name"),
    "alignment as text": (lambda raw, source: with_field(raw, source, name("general.alignment", "32")), "alignment"),
    "a type of later": (replaced(NORM + struct.pack("<I", 0), NORM + struct.pack("<I", 99)), "has type 99"),
    "a gap": (lambda raw, source: raw.replace(*gap(source)), "of the data, not at"),
}


def gap(source: Path) -> tuple[bytes, bytes]:
    """The info of the second tensor, and the same with an offset of 32 bytes more."""
    second = read_gguf(source).tensors[1]
    shape = struct.pack(f"<I{len(second.shape)}QI", len(second.shape), *second.shape, second.ggml_type)
    info = second.name.encode() + shape
    return info + struct.pack("<Q", second.offset), info + struct.pack("<Q", second.offset + 32)


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_library_cannot_read_is_refused(case: str, source: Path, tmp_path: Path) -> None:
    change, words = REFUSED[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(change(source.read_bytes(), source))
    assert not loads(path)
    with pytest.raises(KvtunerError, match=words):
        annotate(path, PLAN, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_key_with_a_nul_is_kept_and_loads(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(with_field(source.read_bytes(), source, name("other\0key", "x")))
    assert loads(path)
    annotate(path, PLAN, tmp_path / "out.gguf")
    assert "other\0key" in read_gguf(tmp_path / "out.gguf").fields
    assert loads(tmp_path / "out.gguf")
