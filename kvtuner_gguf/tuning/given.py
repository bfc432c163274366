"""Stages that were run before, read from whichever file they are in."""

from __future__ import annotations

from collections.abc import Mapping

from kvtuner_gguf.tuning.cluster import SCHEMA as GROUPS_SCHEMA
from kvtuner_gguf.tuning.cluster import Groups
from kvtuner_gguf.tuning.prune import Candidates


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
