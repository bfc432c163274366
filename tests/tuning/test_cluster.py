"""Groups of layers, on made-up errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.tuning.cluster import SCHEMA, Group, Groups, cluster
from kvtuner_gguf.tuning.profile import PairError, Profile
from kvtuner_gguf.tuning.prune import PAPER, Candidates, prune

KV8, K8V4, K4V8, KV4 = (Pair.parse(text) for text in ("q8_0", "q8_0/q4_0", "q4_0/q8_0", "q4_0"))
K4V2, KV2 = Pair("q4_0", "q2_nl"), Pair("q2_nl", "q2_nl")
SHAPE = ModelShape("llama", (2, 2, 2), 64, 64, "f00d")
GROUPS = Groups(SHAPE, (Group((0, 2), (KV4, KV8)), Group((1,), (KV4,))), {"text": "x"})


def profile_of(layers: list[Mapping[Pair, float]], n_head_kv: tuple[int, ...] | None = None) -> Profile:
    """A profile with these e_o."""
    shape = ModelShape("llama", n_head_kv or (2,) * len(layers), 64, 64)
    return Profile(
        shape, tuple({pair: PairError(0, 0, 0, e_o, e_o) for pair, e_o in layer.items()} for layer in layers)
    )


def candidates_of(profile: Profile) -> Candidates:
    return Candidates(profile.model, tuple(tuple(layer) for layer in profile.layers), {"text": "x"})


def layers_of(groups: Groups) -> list[tuple[int, ...]]:
    return [group.layers for group in groups.groups]


def test_near_layers_are_one_group_and_noise_is_alone() -> None:
    e_o = [0.90, 0.10, 0.12, 0.50, 0.14, 0.53, 0.30]
    profile = profile_of([{KV4: value, KV8: 0.0} for value in e_o])
    groups = cluster(profile, candidates_of(profile))
    assert layers_of(groups) == [(0,), (1, 2, 4), (3, 5), (6,)]
    assert all(group.pairs == (KV4, KV8) for group in groups.groups)
    assert groups.provenance["text"] == "x"
    assert "eps 0.05, min_samples 2" in groups.provenance["groups"]


def test_the_distance_is_over_all_pairs() -> None:
    profile = profile_of([{KV4: 0.10, KV8: 0.01}, {KV4: 0.14, KV8: 0.05}])
    assert layers_of(cluster(profile, candidates_of(profile))) == [(0,), (1,)]
    assert layers_of(cluster(profile, candidates_of(profile), eps=0.06)) == [(0, 1)]


def test_min_samples_is_the_size_of_the_smallest_group() -> None:
    profile = profile_of([{KV4: value} for value in (0.1, 0.1, 0.5, 0.5, 0.5)])
    assert layers_of(cluster(profile, candidates_of(profile), min_samples=3)) == [(0,), (1,), (2, 3, 4)]


def test_layers_with_other_candidates_are_never_together() -> None:
    profile = profile_of([{KV4: 0.1, KV8: 0.0}, {KV4: 0.1, K8V4: 0.05, KV8: 0.0}, {KV8: 0.0, KV4: 0.1}])
    groups = cluster(profile, candidates_of(profile))
    assert groups.groups == (Group((0, 2), (KV4, KV8)), Group((1,), (KV4, K8V4, KV8)))


def test_the_shape_of_the_papers_example() -> None:
    """32 layers of Llama-3.1-8B, per token: layer 0 prefers bits for V, the others fall apart by e_o."""
    published = [
        [1, 2, 3, 4, 7, 13, 18, 25, 27, 31],
        [5, 6, 12, 21, 26, 28],
        [8, 9, 10, 11, 14, 15, 16, 17, 20, 30],
        [19, 22],
        [23, 24, 29],
    ]
    level = {il: 0.1 * (1 + ig) for ig, layers in enumerate(published) for il in layers}
    scale = {KV2: 1.0, K4V2: 0.8, KV4: 0.2, K8V4: 0.1, K4V8: 0.15, KV8: 0.01}
    layers = [{pair: level.get(il, 0.1) * share for pair, share in scale.items()} for il in range(32)]
    layers[0][K4V8] = 0.005
    profile = profile_of(layers)
    groups = cluster(profile, prune(profile, PAPER))
    assert layers_of(groups) == [(0,), *(tuple(layers) for layers in published)]
    assert set(groups.groups[0].pairs) == {KV8, K4V8, KV4, K4V2, KV2}
    assert {frozenset(group.pairs) for group in groups.groups[1:]} == {frozenset({KV8, K8V4, KV4, K4V2, KV2})}


def test_layers_without_a_cache_are_one_group_without_a_choice() -> None:
    profile = profile_of([{}, {KV4: 0.1}, {KV4: 0.1}, {}], n_head_kv=(0, 2, 2, 0))
    candidates = Candidates(profile.model, ((KV4, KV8), (KV4,), (KV4,), (KV8,)))
    groups = cluster(profile, candidates)
    assert groups.groups == (Group((0, 3), (KV4,)), Group((1, 2), (KV4,)))
    assert Groups.singletons(candidates).groups[0] == Group((0,), (KV4,))


def test_the_order_of_groups_is_that_of_their_first_layers() -> None:
    profile = profile_of([{KV4: value} for value in (0.9, 0.1, 0.9, 0.1, 0.5)])
    candidates = candidates_of(profile)
    groups = cluster(profile, candidates)
    assert layers_of(groups) == [(0, 2), (1, 3), (4,)]
    assert groups == cluster(profile, candidates)


def test_expand_gives_the_pairs_of_all_layers() -> None:
    assert GROUPS.expand([KV8, KV4]) == (KV8, KV4, KV8)
    with pytest.raises(KvtunerError, match="1 pairs for 2 groups"):
        GROUPS.expand([KV8])


def test_singletons_are_the_candidates() -> None:
    candidates = Candidates(SHAPE, ((KV4,), (KV4, KV8), (KV8,)))
    groups = Groups.singletons(candidates)
    assert layers_of(groups) == [(0,), (1,), (2,)]
    assert tuple(group.pairs for group in groups.groups) == candidates.layers
    assert Plan(groups.expand([KV4, KV8, KV8]), SHAPE).n_layer == 3


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([(0, 1), (1, 2)], "layer 1 is in group 0 and again in group 1"),
        ([(0, 1, 1, 2)], "layer 1 is in group 0 and again in group 0"),
        ([(0,), (2,)], "layer 1 is in none of the 2 groups"),
        ([], "layer 0 is in none of the 0 groups"),
        ([(0, 1, 2, 3)], "group 0 has a layer 3, the model has 3"),
        ([(0, 1, 2), (-1,)], "group 1 has a layer -1"),
        ([(0, 1, True)], "group 0 has a layer True"),
        ([(0, 1, "2")], "group 0 has a layer '2'"),
        ([(0, 1, 2), ()], "group 1 has no layers"),
    ],
)
def test_groups_are_a_partition(layers: list[tuple[Any, ...]], words: str) -> None:
    with pytest.raises(KvtunerError, match=words):
        Groups(SHAPE, tuple(Group(group, (KV4,)) for group in layers))


@pytest.mark.parametrize(("pairs", "words"), [((), "layer 0, has no pairs"), ((KV4, KV4), "layer 0, has a pair twice")])
def test_groups_have_pairs(pairs: tuple[Pair, ...], words: str) -> None:
    with pytest.raises(KvtunerError, match=words):
        Groups(SHAPE, (Group((0, 1, 2), pairs),))


def test_groups_survive_their_file() -> None:
    data = json.loads(json.dumps(GROUPS.to_json()))
    assert data["schema"] == SCHEMA
    assert Groups.from_json(data) == GROUPS


HOSTILE: list[Any] = [
    None,
    1,
    1.5,
    True,
    "q8_0",
    [],
    {},
    [1],
    [[]],
    [None],
    [[0, 1, 2]],
    {"layers": 1},
    [{"layers": [0]}],
]


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_hostile_files_are_refused(value: Any) -> None:
    with pytest.raises(KvtunerError):
        Groups.from_json(value)
    good = GROUPS.to_json()
    with pytest.raises(KvtunerError):
        Groups.from_json({**good, "groups": value})
    for key in ("layers", "pairs"):
        with pytest.raises(KvtunerError, match="group"):
            Groups.from_json({**good, "groups": [{**good["groups"][0], key: value}, good["groups"][1]]})


def test_the_group_that_is_damaged_is_named() -> None:
    data = GROUPS.to_json()
    data["groups"][1]["pairs"] = ["q9_9"]
    with pytest.raises(KvtunerError, match=r"group 1 is damaged .*q9_9"):
        Groups.from_json(data)


@pytest.mark.parametrize(
    ("shape", "layers", "words"),
    [
        (ModelShape("llama", (2, 1), 64, 64), ((KV4,), (KV4,)), "layer 1 has 2 KV heads in the profile, 1"),
        (ModelShape("llama", (2, 2, 2), 64, 64), ((KV4,),) * 3, "layer 2 is not in both"),
        (ModelShape("llama", (2, 2), 64, 64), ((KV4,),), "layer 1 is not in both"),
        (ModelShape("qwen2", (2, 2), 64, 64), ((KV4,),) * 2, "candidates of qwen2"),
        (ModelShape("llama", (2, 2), 64, 64), ((KV4,), (KV4, KV8)), "layer 1: the candidate q8_0/q8_0"),
    ],
)
def test_candidates_of_another_profile_are_refused(
    shape: ModelShape, layers: tuple[tuple[Pair, ...], ...], words: str
) -> None:
    with pytest.raises(KvtunerError, match=words):
        cluster(profile_of([{KV4: 0.1}] * 2), Candidates(shape, layers))


@pytest.mark.parametrize(
    "settings", [{"eps": 0}, {"eps": float("nan")}, {"eps": float("inf")}, {"min_samples": 0}, {"min_samples": 1.5}]
)
def test_bad_settings_say_what_to_give(settings: dict[str, Any]) -> None:
    profile = profile_of([{KV4: 0.1}])
    with pytest.raises(KvtunerError, match="in the paper"):
        cluster(profile, candidates_of(profile), **settings)
