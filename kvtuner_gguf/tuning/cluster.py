"""Stage 3, the groups: layers that share one pair, so that a search has one choice per group.

Source: KVTuner (arXiv 2502.04420), section 5: layers are parted by their pruned pairs, then by DBSCAN on e_o.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.stagefile import entries_from_json, stage_from_json, stage_to_json

if TYPE_CHECKING:
    from kvtuner_gguf.tuning.profile import Profile
    from kvtuner_gguf.tuning.prune import Candidates

SCHEMA = "kvtuner.groups/1"
# the paper's
EPS = 0.05
MIN_SAMPLES = 2


@dataclass(frozen=True)
class Group:
    """Layers that all have the same one of ``pairs``."""

    layers: tuple[int, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Groups:
    """Every layer of the model is in exactly one of ``groups``; raises `KvtunerError` where that is not so."""

    model: ModelShape
    groups: tuple[Group, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        owner: dict[int, int] = {}
        for ig, group in enumerate(self.groups):
            _check_group(ig, group, self.model.n_layer)
            for il in group.layers:
                if il in owner:
                    raise KvtunerError(
                        f"layer {il} is in group {owner[il]} and again in group {ig}: leave it in one, or cluster again"
                    )
                owner[il] = ig
        missing = next((il for il in range(self.model.n_layer) if il not in owner), None)
        if missing is not None:
            raise KvtunerError(
                f"layer {missing} is in none of the {len(self.groups)} groups: add it to one, or cluster again"
            )

    def expand(self, choice: Sequence[Pair]) -> tuple[Pair, ...]:
        """The pairs of all layers where ``choice`` is the pair of each group."""
        if len(choice) != len(self.groups):
            raise KvtunerError(f"{len(choice)} pairs for {len(self.groups)} groups: give one for each group")
        pairs = {il: pair for group, pair in zip(self.groups, choice, strict=True) for il in group.layers}
        return tuple(pairs[il] for il in range(self.model.n_layer))

    @classmethod
    def singletons(cls, candidates: Candidates) -> Groups:
        """Every layer a group of its own."""
        groups = tuple(Group((il,), _pairs(candidates, il)) for il in range(len(candidates.layers)))
        return cls(candidates.model, groups, {**candidates.provenance, "groups": "one for each layer"})

    def to_json(self) -> dict[str, Any]:
        groups = [{"layers": list(group.layers), "pairs": [str(pair) for pair in group.pairs]} for group in self.groups]
        return stage_to_json(SCHEMA, self.model, self.provenance, {"groups": groups})

    @classmethod
    def from_json(cls, data: object) -> Groups:
        """Raises `KvtunerError` naming what is wrong."""
        model, provenance, body = stage_from_json(data, SCHEMA)
        groups = body.get("groups")
        if not isinstance(groups, list):
            raise KvtunerError("'groups' must be a list of {layers, pairs}: cluster again")
        return cls(model, entries_from_json(groups, _group_from_json, "group {}", "cluster again"), provenance)


def _check_group(ig: int, group: Group, n_layer: int) -> None:
    if not group.layers:
        raise KvtunerError(f"group {ig} has no layers: remove it, or cluster again")
    for il in group.layers:
        if type(il) is not int or not 0 <= il < n_layer:
            raise KvtunerError(
                f"group {ig} has a layer {il!r:.40}, the model has {n_layer}, from 0: correct it, or cluster again"
            )
    if not group.pairs:
        raise KvtunerError(f"group {ig}, of layer {group.layers[0]}, has no pairs: give it one, or cluster again")
    if len(set(group.pairs)) < len(group.pairs):
        raise KvtunerError(f"group {ig}, of layer {group.layers[0]}, has a pair twice: keep it once, or cluster again")


def _group_from_json(entry: Mapping[str, Any]) -> Group:
    return Group(tuple(entry["layers"]), tuple(map(Pair.parse, entry["pairs"])))


def cluster(profile: Profile, candidates: Candidates, eps: float = EPS, min_samples: int = MIN_SAMPLES) -> Groups:
    """Groups of layers with the same candidates and like e_o for all of them, ordered by their first layer.

    ``eps`` is the Euclidean distance of two layers' e_o that still makes neighbours, ``min_samples`` how many of these,
    itself included, make a layer the core of a group. The paper leaves open what happens to noise, the layers near no
    core: here each is a group of its own. Layers without a KV cache, which no pair changes, are one group of one pair.

    Raises `KvtunerError` where the candidates are not of this profile.
    """
    _check_settings(eps, min_samples)
    _check_same(profile, candidates)
    parts: dict[frozenset[Pair], list[int]] = {}
    without_cache = []
    for il, layer in enumerate(profile.model.layers):
        layers = parts.setdefault(frozenset(candidates.layers[il]), []) if layer.keeps else without_cache
        layers.append(il)
    found = [group for part in parts.values() for group in _split(profile, candidates, part, eps, min_samples)]
    if without_cache:
        found.append(Group(tuple(without_cache), _pairs(candidates, without_cache[0])))
    found.sort(key=lambda group: group.layers)
    facts = {"groups": f"same candidates, then DBSCAN of e_o, eps {eps:g}, min_samples {min_samples}"}
    return Groups(profile.model, tuple(found), {**candidates.provenance, **facts})


def _split(
    profile: Profile, candidates: Candidates, layers: Sequence[int], eps: float, min_samples: int
) -> list[Group]:
    """The groups of layers that have the same candidates."""
    from sklearn.cluster import DBSCAN  # a second, which only this stage has to wait for

    pairs = candidates.layers[layers[0]]
    e_o = [[profile.layers[il][pair].e_o for pair in pairs] for il in layers]
    members: dict[int, list[int]] = {}
    for il, label in zip(layers, DBSCAN(eps=eps, min_samples=min_samples).fit_predict(e_o), strict=True):
        members.setdefault(int(label) if label >= 0 else -1 - il, []).append(il)  # noise: a number of its own
    return [Group(tuple(group), pairs) for group in members.values()]


def _pairs(candidates: Candidates, il: int) -> tuple[Pair, ...]:
    """The pairs of a layer's group; without a KV cache there is nothing to choose."""
    return candidates.layers[il] if candidates.model.layers[il].keeps else candidates.layers[il][:1]


def _check_settings(eps: float, min_samples: int) -> None:
    if not (math.isfinite(eps) and eps > 0):
        raise KvtunerError(f"eps is {eps!r}, not a distance: give a number above 0, in the paper {EPS}")
    if type(min_samples) is not int or min_samples < 1:
        raise KvtunerError(f"min_samples is {min_samples!r}: give a whole number from 1, in the paper {MIN_SAMPLES}")


def _check_same(profile: Profile, candidates: Candidates) -> None:
    """Raise `KvtunerError` unless the candidates are of the profile's model, and every one was profiled."""
    ours, theirs = profile.model, candidates.model
    for il, heads in enumerate(zip(ours.n_head_kv, theirs.n_head_kv, strict=False)):
        if heads[0] != heads[1]:
            raise KvtunerError(
                f"layer {il} has {heads[0]} KV heads in the profile, {heads[1]} in the candidates: prune this profile"
            )
    if len(candidates.layers) != ours.n_layer or theirs.n_layer != ours.n_layer:
        il = min(len(candidates.layers), theirs.n_layer, ours.n_layer)
        raise KvtunerError(f"layer {il} is not in both the profile and the candidates: prune this profile")
    if ours != theirs:
        raise KvtunerError(
            f"the profile is of {ours.architecture} {ours.fingerprint}, the candidates of {theirs.architecture} "
            f"{theirs.fingerprint}, layers 0 to {ours.n_layer - 1}: prune this profile"
        )
    for il, (errors, pairs) in enumerate(zip(profile.layers, candidates.layers, strict=True)):
        missing = [pair for pair in pairs if pair not in errors]
        if missing and ours.layers[il].keeps:
            raise KvtunerError(f"layer {il}: the candidate {missing[0]} was not profiled: profile it, or prune again")
