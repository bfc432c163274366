"""The bindings' own server: the plan of each model in a config file; and the states that `Llama` saves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.native.test_server_plan import OTHER, PLAN, PROMPT

pytestmark = [pytest.mark.native, pytest.mark.model]

Q8_0 = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bindings")
    annotate(fetch_model("smollm2-135m"), PLAN, path / "model.gguf")
    OTHER.save(path / "other.json")
    return path


def parse(text: str) -> list:
    """The models of a JSON config file, as the server reads it."""
    from llama_cpp.server.settings import ConfigFileSettings

    return ConfigFileSettings.model_validate_json(text).models


@contextmanager
def serving(folder: Path, *models: dict, as_yaml: bool = False) -> Iterator:
    from llama_cpp.server.model import LlamaProxy

    common = {"model": str(folder / "model.gguf"), "n_ctx": 256, "verbose": False}
    config = {"models": [{**common, **model} for model in models]}
    # the server turns YAML into JSON first
    text = json.dumps(yaml.safe_load(yaml.safe_dump(config)) if as_yaml else config)
    proxy = LlamaProxy(parse(text))
    try:
        yield proxy
    finally:
        proxy.free()


def as_types(plan: Plan) -> list[tuple[str, str]]:
    return [(pair.k, pair.v) for pair in plan.pairs]


def uniform(name: str) -> Plan:
    return Plan.uniform(Pair.parse(name), PLAN.n_layer)


@pytest.mark.parametrize("as_yaml", [False, True])
def test_each_model_of_a_config_file_has_its_own_plan(as_yaml: bool, folder: Path) -> None:
    models = (
        {"model_alias": "metadata"},
        {"model_alias": "file", "kv_config": str(folder / "other.json")},
        {"model_alias": "none", "kv_config": "none"},
        {"model_alias": "null", "kv_config": None},
        {"model_alias": "uniform", "type_k": Q8_0},
    )
    plans = (PLAN, OTHER, uniform("f16"), uniform("f16"), uniform("q8_0/f16"))
    with serving(folder, *models, as_yaml=as_yaml) as proxy:
        for model, plan in zip(models, plans, strict=True):
            llama = proxy(model["model_alias"])
            assert llama.kv_cache_types == as_types(plan)
            assert llama("The capital of France is", max_tokens=2)["usage"]["completion_tokens"] == 2
        assert proxy("metadata").kv_cache_types == as_types(PLAN)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kv_config": "/nowhere/plan.json"}, ("/nowhere/plan.json", "check the path")),
        ({"kv_config": "q8_0"}, ("q8_0", "check the path, or use auto or none")),
        ({"kv_config": '{"schema": "other"}'}, ("schema", "kvtuner.plan/1")),
        ({"kv_config": "FILE", "type_k": Q8_0}, ("kv_config and type_k/type_v", "keep one")),
        ({"kv_config": "FILE", "type_v": Q8_0, "flash_attn": True}, ("kv_config and type_k/type_v", "keep one")),
        ({"flash_attn": False}, ("layer 0", "V type q4_0", "FlashAttention")),
    ],
)
def test_a_wrong_value_is_told_and_the_other_models_go_on(wrong: dict, words: tuple[str, ...], folder: Path) -> None:
    wrong = {key: str(folder / "other.json") if value == "FILE" else value for key, value in wrong.items()}
    with serving(folder, {"model_alias": "right"}, {"model_alias": "wrong", **wrong}) as proxy:
        with pytest.raises(ValueError, match=words[0]) as caught:
            proxy("wrong")
        assert all(word in str(caught.value) for word in words)
        assert "\n" not in str(caught.value)
        assert proxy("right").kv_cache_types == as_types(PLAN)


def test_a_value_of_the_wrong_kind_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match=r"(?s)models\.0\.kv_config.*valid string"):
        parse('{"models": [{"model": "m.gguf", "kv_config": 5}]}')


def llama(folder: Path, **kwargs: object):
    from llama_cpp import Llama

    return Llama(str(folder / "model.gguf"), n_ctx=256, verbose=False, **kwargs)


def begin(model) -> None:
    """The prompt without its last token: a state holds no logits to go on from."""
    model.eval(model.tokenize(PROMPT.encode())[:-1])


def go_on(model) -> list[int]:
    """The 12 tokens that follow the prompt, greedily."""
    model.eval(model.tokenize(PROMPT.encode())[-1:])
    tokens = model.generate([], top_k=1, reset=False)
    return [next(tokens) for _ in range(12)]


def test_a_saved_state_goes_on_exactly_with_the_same_plan(folder: Path) -> None:
    first, second = llama(folder), llama(folder)
    begin(first)
    state = first.save_state()
    expected = go_on(first)
    second.load_state(state)
    assert go_on(second) == expected
    first.load_state(state)
    assert go_on(first) == expected


@pytest.mark.parametrize("kv_config", [None, OTHER.to_json()])
def test_another_plan_refuses_a_state_by_name_and_goes_on(kv_config: dict | None, folder: Path) -> None:
    saved, reader = llama(folder), llama(folder, kv_config=kv_config)
    saved.eval(saved.tokenize(b"Once upon a time there was a dog."))
    begin(reader)
    before = reader.save_state()
    expected = go_on(reader)
    reader.load_state(before)
    with pytest.raises(RuntimeError, match=r"^Failed to set .* data: the state was saved with the KV ") as caught:
        reader.load_state(saved.save_state())
    assert str(caught.value).endswith("use the kv-config that it was saved with")
    assert reader.n_tokens == before.n_tokens
    assert go_on(reader) == expected


def test_a_state_that_fails_otherwise_does_not_name_the_plan(folder: Path) -> None:
    model, reader = llama(folder), llama(folder, kv_config=OTHER.to_json())
    model.eval([1, 2, 3])
    state = model.save_state()
    with pytest.raises(RuntimeError, match="plan"):
        reader.load_state(state)
    state.llama_state = bytes(len(state.llama_state))
    reason = "wrong model arch: '' instead of 'llama'"
    with pytest.raises(RuntimeError, match=rf"^Failed to set llama state data: {reason}$"):
        reader.load_state(state)


@pytest.mark.parametrize("kind", ["disk", "ram"])
@pytest.mark.parametrize("kv_config", [None, OTHER.to_json()])
def test_a_cached_state_of_another_plan_is_a_miss(
    kind: str, kv_config: dict | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_cpp import Llama, LlamaDiskCache, LlamaRAMCache

    cache = LlamaDiskCache(str(tmp_path)) if kind == "disk" else LlamaRAMCache()
    filler, reader, alone = llama(folder), llama(folder, kv_config=kv_config), llama(folder, kv_config=kv_config)
    filler.set_cache(cache)
    filler(PROMPT, max_tokens=2)
    asked, load = [], Llama.load_state
    monkeypatch.setattr(Llama, "load_state", lambda self, state: asked.append(self) or load(self, state))
    reader.set_cache(cache)

    def answer(model) -> str:
        return model(PROMPT, max_tokens=8, temperature=0.0)["choices"][0]["text"]

    assert answer(reader) == answer(alone)
    assert asked == [reader], "the state of the other plan was not what the cache gave"
    again = llama(folder)
    again.set_cache(cache)
    again(PROMPT, max_tokens=2)


def test_a_state_that_fails_otherwise_is_no_miss(folder: Path) -> None:
    from llama_cpp import LlamaRAMCache

    filler, reader = llama(folder), llama(folder)
    cache = LlamaRAMCache()
    filler.set_cache(cache)
    filler(PROMPT, max_tokens=2)
    for state in cache.cache_state.values():
        state.llama_state = bytes(len(state.llama_state))
    reader.set_cache(cache)
    with pytest.raises(RuntimeError, match=r"^Failed to set llama state data: wrong model arch"):
        reader(PROMPT, max_tokens=2)


def test_the_servers_command_runs() -> None:
    """What it imports is in the extra ``server``."""
    done = subprocess.run([sys.executable, "-m", "llama_cpp.server", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--kv_config" in done.stdout
