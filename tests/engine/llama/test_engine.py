"""The built llama.cpp as an engine, on small random models of every architecture that upstream's own test can write."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.attention import Attention, Rope, Seen  # noqa: E402
from kvtuner_gguf.engine.llama import capture as capturing  # noqa: E402
from kvtuner_gguf.engine.llama.engine import LlamaEngine  # noqa: E402
from kvtuner_gguf.engine.llama.interrupts import interrupts_held  # noqa: E402
from kvtuner_gguf.engine.llama.native import open_model  # noqa: E402
from kvtuner_gguf.engine.llama.nodes import Node  # noqa: E402
from kvtuner_gguf.engine.llama.weights import (  # noqa: E402
    AS_IN_FILE,
    COPIED,
    MULTIPLIED,
    QUANTIZED,
    weights_for,
)
from kvtuner_gguf.engine.opening import chosen_engine, open_engine  # noqa: E402
from kvtuner_gguf.errors import KvtunerError  # noqa: E402
from kvtuner_gguf.files.assets import fetch_model, fetch_text  # noqa: E402
from kvtuner_gguf.gguffile.metadata import centering_obstacle, model_shape  # noqa: E402
from kvtuner_gguf.gguffile.reader import read_gguf  # noqa: E402
from kvtuner_gguf.gguffile.shards import read_model  # noqa: E402
from kvtuner_gguf.plan.backends import chosen_backend  # noqa: E402
from kvtuner_gguf.plan.contextsize import ContextSize  # noqa: E402
from kvtuner_gguf.plan.ends import Ends  # noqa: E402
from kvtuner_gguf.plan.pairs import Pair  # noqa: E402
from kvtuner_gguf.plan.plan import Plan  # noqa: E402
from kvtuner_gguf.tuning.goal import Goal  # noqa: E402
from kvtuner_gguf.tuning.settings import Settings, check_goal  # noqa: E402
from kvtuner_gguf.tuning.texts import Texts  # noqa: E402
from kvtuner_gguf.tuning.tuner import Tuned, Tuner  # noqa: E402
from tests.native.archs import write_models  # noqa: E402
from tests.tiny import write_tiny  # noqa: E402

pytestmark = pytest.mark.native

TYPES = ("f16", "q8_0", "q4_0")
NO_CACHE = "keep no KV cache: there is nothing to tune"
# why the models of an architecture are not tuned
REFUSED = {
    **dict.fromkeys(("dream", "llada", "llada-moe", "mamba", "mamba2", "rnd1"), NO_CACHE),
    "deepseek4": "keeps compressed keys, to which no plan applies",
    "grok": "grok attends without FlashAttention, and cannot be tuned",
    "laguna": "is less than the 16 to 16 bits per value of the candidates",
    "minimax-m3": "chooses blocks of the cache to attend to, and cannot be tuned",
}
N_TOKENS = 40


class WithBytes(LlamaEngine):
    """Has a tokenizer, which the small models lack."""

    def tokenize(self, text: str) -> list[int]:
        return [byte % min(100, self.native.n_vocab) for byte in text.encode()]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(write_models(tmp_path_factory.mktemp("archs")).glob("*.gguf"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"word{i * i % 977}" for i in range(2000)))
    return path


def engine_of(path: Path) -> WithBytes:
    return WithBytes(path, model_shape(read_model(path)), 1)


def arch_of(path: Path) -> str:
    return path.stem.rpartition("-")[0]


def tune(path: Path, text: Path, work: Path | None = None, **change: Any) -> Tuned:
    headers = read_model(path)
    shape = model_shape(headers)
    small = {"n_tokens": 64, "n_ctx": 32, "n_points": 3, "trials": 2, "ends": Ends(2, 3), "goal": Goal(bits=7.5)}
    center, backend = centering_obstacle(headers) is None, chosen_backend(None, TYPES).fitting(shape)
    settings = Settings(**{"backend": backend, "center": center, **small, **change})
    check_goal(settings, shape)
    return Tuner(WithBytes(path, shape, 1), Texts((text,), (1.0,)), settings, work).run()


def test_every_architecture_is_tuned_or_refused_with_its_reason(models: list[Path], text: Path) -> None:
    found = {}
    for path in models:
        if reason := REFUSED.get(arch_of(path)):
            with pytest.raises(KvtunerError, match=reason):
                tune(path, text)
            continue
        found[path.stem] = tuned = tune(path, text)
        plan = tuned.plan
        assert plan.bits_with_ends(tuned.front.model, 8192) <= 7.5, path.stem
        for il, layer in enumerate(tuned.front.model.layers):
            assert layer.keeps or plan.pairs[il] == Pair("f16", "f16"), path.stem
        quantized = any(t.is_quantized for pair in plan.pairs for t in pair.types)
        assert quantized == (tuned.row.kld_mean > 0), path.stem
        assert tuned.noise_floor < 1e-6, f"{path.stem}: other positions have other predictions"
    assert len(found) > 100
    assert sum(tuned.plan.centers is not None for tuned in found.values()) > 80


@pytest.mark.parametrize("name", ["gemma3-dense", "gpt-oss-moe"])
def test_layers_with_a_window_are_left_at_f16_where_they_are_nearly_free(
    name: str, models: list[Path], text: Path
) -> None:
    """Layer 0 sees 32 tokens: 768 cells beside 131072 are 1.2 % of 7.5 bits, beside 8192 they are 18 %."""
    path = next(path for path in models if path.stem == name)
    long, short = Goal(bits=7.5, n_ctx=131072), Goal(bits=7.5, n_ctx=8192)
    quantized = chosen_backend(None, ("q8_0", "q4_0"))
    plans = {
        (goal.n_ctx, windows): tune(path, text, goal=goal, windows=windows, backend=quantized).plan
        for goal, windows in ((long, "auto"), (long, "search"), (short, "auto"))
    }
    left = plans.pop((131072, "auto"))
    assert left.pairs[0] == Pair("f16", "f16")
    assert left.provenance["windows"]["share"] == pytest.approx(16 * 768 / (7.5 * (768 + 131072)), rel=1e-3)
    for plan in plans.values():
        assert all(side.is_quantized for side in plan.pairs[0].types)
        assert "windows" not in plan.provenance
    for n_ctx, plan in ((131072, left), (131072, plans[131072, "search"]), (8192, plans[8192, "auto"])):
        assert plan.bits_with_ends(plan.model, n_ctx) <= 7.5
    with open_model(path, 1) as model, model.context(left, 131072, 512) as context:
        assert context.cache_types[0] == Pair("f16", "f16")
        assert context.cache_bytes == left.n_bytes(left.model, ContextSize(131072))


class Remade(capturing.Capture):
    """Compares what attention gives with what it would give by what is captured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.errors: dict[int, float] = {}

    def _computed(self, node: Node) -> bool:
        go_on = super()._computed(node)
        place = self._place(node)
        if place is not None and node.op == "FLASH_ATTN_EXT" and place[1] not in self.errors:
            used = self._found[place[1]].used
            assert used is not None
            given = torch.from_numpy(node.array()[0].astype(np.float32)).transpose(0, 1)
            self.errors[place[1]] = float((given - output_of(used)).norm() / given.norm())
        return go_on


def output_of(used: Attention) -> torch.Tensor:
    """[query heads, tokens, head size]"""
    rows = torch.arange(used.query.shape[2])
    query = used.query[0].unflatten(0, (used.key.shape[1], -1))
    weights = used.weights(query @ used.key[0, :, None].transpose(-1, -2), rows, 0)
    return (weights @ used.value[0, :, None]).flatten(0, 1)


def test_attention_of_every_architecture_follows_from_what_is_captured(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randint(0, 100, (1, N_TOKENS), generator=torch.Generator().manual_seed(1))
    worst: dict[str, float] = {}
    for path in models:
        if arch_of(path) in REFUSED and arch_of(path) != "laguna":
            continue
        made: list[Remade] = []

        def make(*args: object, made: list[Remade] = made) -> Remade:
            made.append(Remade(*args))
            return made[-1]

        monkeypatch.setattr("kvtuner_gguf.engine.llama.engine.Capture", make)
        engine, seen = engine_of(path), []
        engine.capture(tokens, lambda il, used, seen=seen: seen.append(il))
        assert seen == [il for il, layer in enumerate(engine.shape.layers) if layer.keeps], path.stem
        worst[path.stem] = max(error for capture in made for error in capture.errors.values())
    print({name: f"{error:.1e}" for name, error in worst.items() if error > 1e-3})
    assert max(worst.values()) < 5e-3


@pytest.mark.parametrize("name", ["deepseek32-moe", "dots3note-moe"])
def test_attention_that_chooses_tokens_is_captured_chunk_by_chunk(
    name: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = choosing(next(path for path in models if path.stem == name), 8, tmp_path / "m.gguf")
    tokens = torch.randint(0, 100, (2, N_TOKENS), generator=torch.Generator().manual_seed(1))
    made: list[Remade] = []
    monkeypatch.setattr(
        "kvtuner_gguf.engine.llama.engine.Capture", lambda *args: made.append(Remade(*args)) or made[-1]
    )
    engine = engine_of(path)
    both, *alone = ([used for _, used in seen(engine, chunks)] for chunks in (tokens, tokens[:1], tokens[1:]))
    assert max(error for capture in made for error in capture.errors.values()) < 5e-3
    assert any(isinstance(used.mask, tuple) for used in both)
    rows = torch.arange(N_TOKENS)
    for joined, *chunks in zip(both, *alone, strict=True):
        hidden = [joined.mask_of(c).hides(rows, N_TOKENS) for c in range(2)]
        for mask, chunk in zip(hidden, chunks, strict=True):
            assert torch.equal(mask, chunk.mask_of(0).hides(rows, N_TOKENS))
        if isinstance(joined.mask, tuple):
            assert not torch.equal(*hidden)
            assert all((~mask).sum(-1).max() == 8 for mask in hidden)


def seen(engine: LlamaEngine, chunks: torch.Tensor) -> list[tuple[int, Attention]]:
    found: list[tuple[int, Attention]] = []
    engine.capture(chunks, lambda il, used: found.append((il, used)))
    return found


def choosing(path: Path, n_tokens: int, target: Path) -> Path:
    """The model at ``path`` with an attention that chooses so many tokens; upstream writes one that takes them all."""
    header, raw = read_gguf(path), bytearray(path.read_bytes())
    found = header.fields[f"{header.architecture}.attention.indexer.top_k"]
    raw[found.end - 4 : found.end] = struct.pack("<I", n_tokens)
    target.write_bytes(raw)
    return target


@pytest.mark.parametrize(
    ("name", "interleaved"),
    [
        ("llama-dense", True),
        ("qwen2-dense", False),
        ("llama4-moe", True),  # a norm without weights follows
        ("hunyuan-dense-dense", None),  # one with weights follows
        ("minicpm3-dense", None),  # a part of each key is turned
    ],
)
def test_rope_is_told_where_it_is_all_that_turns_keys(name: str, interleaved: bool | None, models: list[Path]) -> None:
    engine, found = engine_of(next(path for path in models if path.stem == name)), []
    engine.capture(torch.arange(16)[None], lambda il, used: found.append(used.rope))
    turned = [rope for rope in found if rope is None or rope.frequencies.max() > 0]  # one layer in 4 of llama4 has none
    assert len(turned) >= 2
    assert [rope and rope.interleaved for rope in turned] == [interleaved] * len(turned)


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("llama-dense", True),
        ("minicpm3-dense", True),  # a part of each key is turned
        ("bloom-dense", True),  # distances are biases
        ("hunyuan-dense-dense", False),  # a norm with weights follows RoPE
        ("gpt2-dense", False),  # positions have vectors
    ],
)
def test_a_text_is_moved_where_that_changes_nothing_but_rounding(name: str, moves: bool, models: list[Path]) -> None:
    engine = engine_of(next(path for path in models if path.stem == name))
    assert engine.can_move == moves
    assert engine.noise_floor(torch.arange(32).view(2, 16)) < 1e-6


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    done = []

    def interrupted() -> None:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert done


def test_weights_of_few_bits_are_copied(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    headers = read_model(next(path for path in models if path.stem == "llama-dense"))
    types = {0: AS_IN_FILE, 1: AS_IN_FILE, 30: COPIED, 2: COPIED}
    for ggml_type, expected in types.items():
        given = [replace(one, tensors=[replace(t, ggml_type=ggml_type) for t in one.tensors]) for one in headers]
        assert weights_for(given, "cpu") == expected
        is_float = expected == AS_IN_FILE
        assert weights_for(given, "cpu", QUANTIZED) == (AS_IN_FILE if is_float else QUANTIZED)
        assert weights_for(given, "cuda", COPIED) == (AS_IN_FILE if is_float else MULTIPLIED)
        with monkeypatch.context() as patch:
            patch.setattr("kvtuner_gguf.engine.llama.weights.available_memory", lambda: 1 << 10)
            assert weights_for(given, "cpu") == (AS_IN_FILE if is_float else QUANTIZED)
            assert weights_for(given, "cpu", COPIED) == expected, "a tuning goes on with the weights that it has"
            assert weights_for(given, "cpu", AS_IN_FILE) == (AS_IN_FILE if is_float else QUANTIZED), "of another file"


def test_layers_that_are_too_many_to_hold_are_seen_in_groups(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(path for path in models if path.stem == "llama-dense")
    tokens = torch.randint(0, 100, (2, 16), generator=torch.Generator().manual_seed(1))
    found: list[list[Attention]] = []
    for held in (1, 1 << 28):
        monkeypatch.setattr("kvtuner_gguf.engine.llama.engine.MAX_HELD", held)
        found.append([])
        engine_of(path).capture(tokens, lambda il, used: found[-1].append(used))
    assert len(found[0]) == len(found[1]) > 1
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.key, other.key)
        assert torch.equal(one.query, other.query)


def test_the_same_command_gives_the_same_plan_and_goes_on_where_it_was(
    models: list[Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(path for path in models if path.stem == "gemma3-dense")
    once, again = tune(path, text, tmp_path / "work"), tune(path, text)
    assert once.plan == again.plan
    monkeypatch.setattr(WithBytes, "capture", None)
    monkeypatch.setattr(WithBytes, "logits", None)
    assert tune(path, text, tmp_path / "work").plan == once.plan


def test_a_partial_rope_turns_the_first_channels_and_no_others() -> None:
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0)).double()
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001, 0.0, 0.0], dtype=torch.float64)
    whole, part = Rope(frequencies[:4], False), Rope(frequencies, False, 8)
    turned = part.turned(x, torch.tensor([0, 5, 9]))
    assert torch.allclose(turned[..., :8], whole.turned(x[..., :8], torch.tensor([0, 5, 9])))
    assert torch.equal(turned[..., 8:], x[..., 8:])
    assert torch.equal(part.channels(part.pairs(x)), x)


def test_a_mask_is_read_row_by_row() -> None:
    seen = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    assert torch.equal(Seen(seen).hides(torch.tensor([2, 1]), 2), ~seen[[2, 1], :2])


@pytest.mark.model
def test_both_engines_see_the_same_attention_and_the_same_losses() -> None:
    path = fetch_model("smollm2-135m")
    shape = model_shape(read_model(path))
    llama, reference = (open_engine(path, shape, engine=name) for name in ("llama", "torch"))
    ids = llama.tokenize(fetch_text("encyclopedia").read_text()[:2000])
    assert ids == reference.tokenize(fetch_text("encyclopedia").read_text()[:2000])
    tokens = torch.tensor(ids[:256])[None]
    used: list[list[Attention]] = [[], []]
    for engine, into in zip((llama, reference), used, strict=True):
        engine.capture(tokens, lambda il, one, into=into: into.append(one))
    for one, other in zip(*used, strict=True):
        for name in ("query", "key", "value"):
            assert (getattr(one, name) - getattr(other, name)).norm() < 0.01 * getattr(other, name).norm()
        assert one.rope.interleaved == other.rope.interleaved
        assert torch.allclose(one.rope.frequencies, other.rope.frequencies.double(), rtol=1e-5)
    exact = [Pair("f32", "f32")] * shape.n_layer
    plans = [
        [*exact[:il], pair, *exact[il + 1 :]] for il, pair in ((3, Pair("q4_0", "f32")), (25, Pair("f32", "q4_0")))
    ]
    judges = [engine.judge(tokens) for engine in (llama, reference)]
    for plan in plans:
        klds = [judge.kld(plan).mean().item() for judge in judges]
        assert klds[0] == pytest.approx(klds[1], rel=0.1)
        assert klds[0] > 1e-5


@pytest.mark.parametrize(
    ("arch", "strings", "engine"),
    [
        ("llama", {}, "torch"),
        ("qwen2", {}, "torch"),
        ("llama", {"llama__rope__scaling__type": "yarn"}, "llama"),
        ("gemma3", {}, "llama"),
    ],
)
def test_auto_takes_torch_where_it_is_exact_and_has_room(
    arch: str, strings: dict, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = read_model(write_tiny(tmp_path / "m.gguf", arch, **strings))
    assert chosen_engine(headers) == engine
    monkeypatch.setattr("kvtuner_gguf.engine.opening.available_memory", lambda: 1 << 10)
    assert chosen_engine(headers) == "llama"


def test_engines_that_are_not_there_are_refused(models: list[Path]) -> None:
    path = next(path for path in models if path.stem == "llama-dense")
    shape = model_shape(read_model(path))
    with pytest.raises(KvtunerError, match="unknown engine 'tgi': use one of auto, torch, llama"):
        open_engine(path, shape, engine="tgi")
    with pytest.raises(KvtunerError, match="--device cuda is for torch"):
        open_engine(path, shape, "cuda", engine="llama")


def test_a_plan_of_f32_sides_runs_with_f16(models: list[Path]) -> None:
    engine = engine_of(next(path for path in models if path.stem == "llama-dense"))
    tokens = torch.arange(16)
    plans = [Plan.uniform(Pair.parse(name), engine.shape.n_layer) for name in ("f32/f32", "f16/f16")]
    one, other = (torch.cat(list(engine.logits(plan, tokens, slice(4, 16)))) for plan in plans)
    assert one.shape[0] == 12
    assert torch.equal(one, other)


def command(*args: object) -> list[str]:
    return [sys.executable, "-c", "from kvtuner_gguf.cli import main; main()", *map(str, args)]


def test_a_killed_tuning_goes_on_and_gives_the_same_plan(text: Path, tmp_path: Path) -> None:
    """The whole command, with a tokenizer in the file, from another engine's folder, too."""
    model = write_tiny(tmp_path / "m.gguf", "qwen2")
    small = ("--tokens", 128, "--ctx", 64, "--ends", "2+8", "--bits", 6, "--candidates", "q8_0,q4_0", "--text", text)
    engine = ("--engine", "llama", "--no-native")

    def tune_into(name: str, *options: object) -> subprocess.CompletedProcess[str]:
        done = command("tune", model, "-o", tmp_path / f"{name}.json", *small, *options)
        return subprocess.run(done, capture_output=True, text=True, timeout=300)

    whole = tune_into("whole", *engine)
    assert whole.returncode == 0, whole.stderr
    journal = tmp_path / "killed.tune" / "journal.jsonl"
    running = subprocess.Popen(command("tune", model, "-o", tmp_path / "killed.json", *small, *engine))
    while running.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert tune_into("killed", *engine).returncode == 0
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert tune_into("whole", "--no-native").returncode == 0, "auto keeps to the engine of the folder"
    other = tune_into("whole", "--engine", "torch", "--no-native")
    assert other.returncode == 1
    assert "holds a tuning with --engine llama, not torch" in " ".join(other.stderr.split())
