"""Where something is refused its reason reaches the user, through the tools, the server and the bindings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.server.llama_server import running_server
from tests.native.test_runtime import complete, llama, tool
from tests.native.test_server_plan import OTHER, PLAN, PROMPT

pytestmark = [pytest.mark.native, pytest.mark.model]


@pytest.fixture(scope="module")
def model() -> Path:
    return fetch_model("smollm2-135m")


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reasons")
    annotate(model, PLAN, path / "model.gguf")
    OTHER.save(path / "other.json")
    (path / "bad.json").write_text('{"schema": "kvtuner.plan/1",\n "layers": [1,]}')
    return path


BENCH = ("-p", 8, "-n", 0, "-r", 1, "-o", "json")


def test_the_bench_says_why_it_makes_no_context(folder: Path) -> None:
    done = tool("llama-bench", "-m", folder / "model.gguf", *BENCH, "-fa", 0)
    assert done.returncode == 1
    assert "layer 0: V type q4_0 needs FlashAttention, which is off: use -fa on or auto" in done.stderr


def test_the_bench_says_why_it_loads_no_model(folder: Path, model: Path) -> None:
    done = tool("llama-bench", "-m", model, *BENCH, "--kv-config", folder / "bad.json")
    assert done.returncode == 1
    assert "bad.json: not JSON (line 2, column 15: a value is expected)" in done.stderr


@pytest.mark.parametrize("types", [("-ctk", "q8_0"), ("-ctv", "f16"), ("-ctk", "f16,q8_0")])
def test_the_bench_refuses_two_wishes_in_the_words_of_the_server(types: tuple, folder: Path, model: Path) -> None:
    plan = folder / "other.json"
    words = f"--kv-config {plan} and -ctk/-ctv ask for different caches: keep one"
    done = tool("llama-bench", "-m", model, *BENCH, "--kv-config", f"none,{plan}", *types)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {words}\n" in done.stderr
    assert words in complete(model, "--kv-config", plan, "-ctk", "q8_0").stderr


def test_types_of_the_bench_go_before_metadata(folder: Path) -> None:
    done = tool("llama-bench", "-m", folder / "model.gguf", *BENCH, "--kv-config", "auto", "-ctk", "f16")
    assert [(row["kv_config"], row["kv_bits"]) for row in json.loads(done.stdout)] == [("none", 16.0)]


def test_a_folder_is_no_file(folder: Path, model: Path) -> None:
    log = complete(model, "--kv-config", folder).stderr
    assert f"KV config {folder}: cannot be read: check the path, or use auto or none (Is a directory)" in log
    with pytest.raises(ValueError, match="Is a directory"):
        llama(model, kv_config=str(folder))


def test_errors_in_json_name_line_and_column(folder: Path, model: Path) -> None:
    words = "bad.json: not JSON (line 2, column 15: a value is expected): correct it or tune again"
    assert words in complete(model, "--kv-config", folder / "bad.json").stderr
    with pytest.raises(ValueError, match=re.escape(words)):
        llama(model, kv_config=folder / "bad.json")


def test_an_empty_variable_counts_as_unset(folder: Path) -> None:
    done = complete(folder / "model.gguf", LLAMA_ARG_KV_CONFIG="", LLAMA_ARG_KV_CONFIG_DRAFT="")
    assert done.returncode == 0
    assert f"{PLAN.bits_per_value():.4f} bits per value" in done.stderr
    assert llama(folder / "model.gguf", kv_config="").kv_cache_types[0] == ("q8_0", "q4_0")


@pytest.mark.parametrize("kv_config", [True, 3, [], b"auto", 1.5])
def test_a_kv_config_of_no_use_is_named(kv_config: object, model: Path) -> None:
    with pytest.raises(TypeError, match=r'^kv_config is .*: give "auto", None, the path of a plan') as caught:
        llama(model, kv_config=kv_config)
    assert repr(kv_config) in str(caught.value)


@pytest.mark.parametrize(
    ("kv_config", "error"),
    [({"a": {1}}, TypeError), ({"a": float("nan")}, ValueError), ("a\0b", ValueError), ("\ud800x", ValueError)],
)
def test_a_kv_config_that_cannot_be_passed_on_is_named(kv_config: object, error: type, model: Path) -> None:
    with pytest.raises(error, match=r"^kv_config "):
        llama(model, kv_config=kv_config)


def test_the_bindings_say_why_there_is_no_context(model: Path) -> None:
    with pytest.raises(ValueError, match="Failed to create llama_context: quantized V cache requires flash_attn"):
        llama(model, type_v=8, flash_attn=False)


def test_a_quantized_v_turns_flash_attention_on(model: Path) -> None:
    """Unless the caller decides: as the bindings document it."""
    assert llama(model, type_v=8).kv_cache_types[0] == ("f16", "q8_0")


def test_the_bindings_say_why_there_is_no_model(folder: Path, model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"Failed to load model from file: .*: tensor '.*' data is not within"):
        llama(cut)


def test_a_reason_is_that_of_the_failure_at_hand(model: Path) -> None:
    import llama_cpp

    with pytest.raises(ValueError, match="flash_attn"):
        llama(model, type_v=8, flash_attn=False)
    state = llama(model).save_state()
    state.llama_state, state.llama_state_size = state.llama_state[:5], 5
    with pytest.raises(RuntimeError, match=r"^Failed to set llama state data: unexpectedly reached end of buffer$"):
        llama(model).load_state(state)
    assert llama_cpp.kvtuner.failure("none") == "none"


def test_a_state_of_two_sequences_says_what_one_lacks(model: Path, tmp_path: Path) -> None:
    options = ["--slot-save-path", str(tmp_path)]
    with running_server(model, n_ctx=512, options=[*options, "--parallel", "2"]) as server:
        server.complete(PROMPT, 1, id_slot=0)
        server.call("/slots/0?action=save", {"filename": "two.bin"})
        raw = (tmp_path / "two.bin").read_bytes()
        (tmp_path / "cut.bin").write_bytes(raw[:-1000])
        (tmp_path / "short.bin").write_bytes(raw[:14])
        for name, n_bytes in (("cut.bin", "bytes too early"), ("short.bin", "exceeds the file size")):
            with pytest.raises(KvtunerError, match=n_bytes):
                server.call("/slots/0?action=restore", {"filename": name})
    with running_server(model, n_ctx=512, options=options) as server:
        with pytest.raises(KvtunerError) as caught:
            server.call("/slots/0?action=restore", {"filename": "two.bin"})
        message = str(caught.value)
        assert server.complete(PROMPT, 1, id_slot=0)
    assert "the state has 2 streams of KV cache, this context 1: use the -np that it was saved with" in message
    assert "\n" not in message


@pytest.mark.parametrize("cut", [1, 100, 5000, 30000])
def test_a_session_file_that_was_cut_is_called_so(cut: int, model: Path, tmp_path: Path) -> None:
    session = tmp_path / "session"
    args = ("--prompt-cache", session, "-p", PROMPT)
    assert complete(model, *args).returncode == 0
    session.write_bytes(session.read_bytes()[:-cut])
    done = complete(model, *args)
    assert done.returncode != 0
    assert "the file ends" in done.stderr
    assert "bytes too early: it was cut" in done.stderr
    assert "mismatched" not in done.stderr


@pytest.mark.parametrize("side", ["type_k", "type_v"])
@pytest.mark.parametrize("number", [4, 45, 999])
def test_a_type_number_that_is_no_type_is_refused(side: str, number: int, model: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{side} is {number}, which is no type: use one of GGML_TYPE_"):
        llama(model, **{side: number})


@pytest.mark.parametrize("before", ["", " \n", "\ufeff", "\ufeff "])
def test_the_text_of_a_plan_is_known_whatever_stands_before_it(before: str, model: Path) -> None:
    with pytest.raises(ValueError, match=r"line [12], column 1[34]"):
        llama(model, kv_config=before + '{"type_k": [,')
