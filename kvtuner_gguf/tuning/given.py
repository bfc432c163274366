"""Stages that were run before, read from whichever file they are in, and whether a tuning can go on from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import UNQUANTIZED, Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.tuning.cluster import SCHEMA as GROUPS_SCHEMA
from kvtuner_gguf.tuning.cluster import Groups
from kvtuner_gguf.tuning.optionnames import option_name
from kvtuner_gguf.tuning.profile import Profile
from kvtuner_gguf.tuning.prune import Candidates

if TYPE_CHECKING:
    from kvtuner_gguf.engine.base import Engine


def candidates_or_groups(data: object) -> tuple[Candidates, Groups | None]:
    """The pairs of each layer, and the groups where ``data`` has them.

    Raises `KvtunerError` where it is neither.
    """
    if isinstance(data, Mapping) and data.get("schema") == GROUPS_SCHEMA:
        groups = Groups.from_json(data)
        pairs = {il: group.pairs for group in groups.groups for il in group.layers}
        layers = tuple(pairs[il] for il in range(groups.model.n_layer))
        return Candidates(groups.model, layers, groups.provenance), groups
    return Candidates.from_json(data), None


def check_model_given(name: str, given: Profile | Candidates | Groups, model: str, shape: ModelShape) -> None:
    """Raise `KvtunerError` unless ``given`` is of ``model``, which has this ``shape``."""
    if given.model != shape:
        raise KvtunerError(f"{name}: it is of another model: run that stage again for {model}")


def check_given(name: str, given: Profile | Candidates | Groups, engine: Engine, facts: Mapping[str, Any]) -> None:
    """Raise `KvtunerError` unless ``given`` is of the model of ``engine`` and of the text of ``facts``."""
    check_model_given(name, given, engine.model, engine.shape)
    check_text_given(name, given, facts)


def check_text_given(name: str, given: Profile | Candidates | Groups, facts: Mapping[str, Any]) -> None:
    """Raise `KvtunerError` unless ``given`` is of the text of ``facts``."""
    before = given.provenance
    for fact in ("text_sha256", "text_tokens", "n_ctx", "seed"):
        if before.get(fact) != facts[fact]:
            is_named = fact == "text_sha256" and before.get("text") != facts["text"]
            shown = "text" if is_named else fact
            raise KvtunerError(
                f"{name}: {option_name(shown)} is {before.get(shown)!r}, not {facts[shown]!r}: give the text, "
                "--tokens, --ctx and --seed of the profile"
            )


def can_leave(profile: Profile, groups: Groups | None) -> bool:
    """Whether layers with a window may be left at f16: no ``groups`` say what they have, and f16 is in the profile."""
    return groups is None and any("f16" in (pair.k, pair.v) for pair in profile.layers[0])


def types_given(profile: Profile, groups: Groups | None, fixed: Mapping[int, Pair]) -> list[str]:
    """The types of ``profile``; raises `KvtunerError` where it and the ``groups`` leave no way to fix the layers."""
    types = {name for pair in profile.layers[0] for name in (pair.k, pair.v)} - {UNQUANTIZED}
    if fixed and groups is not None:
        raise KvtunerError(
            "--fix, or --windows f16, and groups say what layers have: give the candidates, or change the groups"
        )
    for il, pair in fixed.items():
        missing = sorted({pair.k, pair.v}.difference(types))
        if missing:
            raise KvtunerError(
                f"layer {il} is fixed to {pair}, and the profile has no {missing[0]}: profile with --candidates "
                f"{','.join([*sorted(types), *missing])}"
            )
    return sorted(types)
