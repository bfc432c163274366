"""What is judged: caches as plans, and the row of results that each gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from kvtuner_gguf.errors import KvtunerError, about, shown
from kvtuner_gguf.evaluation.divergence import Divergence
from kvtuner_gguf.plan.ends import ENDS_CTX
from kvtuner_gguf.plan.pairs import F16, Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape

BASELINE = F16
# tokens of a batch, which a sliding window keeps room for. Every context holds the logits of one batch twice, with a
# vocabulary of 152k that is 0.6 MB a token.
N_BATCH = 256
# what a row is of: the f16 cache, one pair in all layers, the same with centered keys, or types of each layer
KINDS = (OF_F16, OF_UNIFORM, OF_CENTERED, OF_PLAN) = ("f16", "uniform", "centered uniform", "plan")


@dataclass(frozen=True)
class Row:
    """One cache against the f16 cache. KLDs in nats, `same_top` in percent, `kv_mib` as allocated for the context.

    ``kind``: one of `KINDS`, as `kind_of` tells it.
    ``kld_se``: the standard error of ``kld_mean``, None where too little was scored to tell.
    ``bits_with_ends``: with the plan's exact ends and turned centers, in a context of `ENDS_CTX` tokens.
    """

    name: str
    bits_per_value: float
    bits_with_ends: float
    kv_bytes_per_token: int
    kld_mean: float
    kld_median: float
    kld_p999: float
    same_top: float
    ppl: float
    ppl_ratio: float
    kv_mib: float
    kld_se: float | None = None
    kind: str = OF_PLAN

    @classmethod
    def from_json(cls, data: object) -> Row:
        """A row as `eval --json` prints it. Raises `KvtunerError` naming the value that is wrong."""
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or sorted(data) != sorted(names):
            raise KvtunerError(f"it must have {', '.join(names)}, and no more: run eval --json again")
        for name, value in data.items():
            _check_field(name, value)
        return cls(**data)


def rows_from_json(data: object) -> list[Row]:
    """Rows as `eval --json` prints them. Raises `KvtunerError` naming the row and the value that is wrong."""
    if not isinstance(data, list):
        raise KvtunerError("it is no list of rows: run eval --json again")
    rows = []
    for i, entry in enumerate(data):
        with about(f"row {i}"):
            rows.append(Row.from_json(entry))
    return rows


def are_rows(data: object) -> bool:
    """Whether `rows_from_json` takes ``data``: what another version has left may lack a value."""
    try:
        rows_from_json(data)
    except KvtunerError:
        return False
    return True


def _check_field(name: str, value: object) -> None:
    if name == "kind" and value not in KINDS:
        raise KvtunerError(f"unknown kind {shown(value)}: use one of {', '.join(KINDS)}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_right = isinstance(value, str) if name in ("kind", "name") else is_number or (name == "kld_se" and value is None)
    if not is_right:
        raise KvtunerError(f"'{name}' is {shown(value)}: run eval --json again")


def kind_of(plan: Plan, shape: ModelShape) -> str:
    """Which of `KINDS` the caches of ``plan`` are in a model of this shape, whatever it is called."""
    pairs = {pair for pair, layer in zip(plan.pairs, shape.layers, strict=True) if layer.keeps}
    if len(pairs) > 1:
        return OF_PLAN
    if pairs <= {F16}:
        return OF_F16
    return OF_UNIFORM if plan.centers is None else OF_CENTERED


def as_plans(caches: Mapping[str, Pair | Plan], shape: ModelShape) -> dict[str, Plan]:
    """The f16 cache, first, and a plan for each of ``caches``.

    Raises `KvtunerError` naming the one that does not fit the model, or has the name of the f16 cache and is another.
    """
    plans = {str(BASELINE): Plan.uniform(BASELINE, shape.n_layer)}
    for name, cache in caches.items():
        plan = cache if isinstance(cache, Plan) else Plan.uniform(cache, shape.n_layer)
        with about(name):
            plan.check(shape)
            if name == str(BASELINE) and plan.pairs != plans[name].pairs:
                raise KvtunerError("so is called the f16 cache, which the others are compared with: give another name")
        plans.setdefault(name, plan)
    return plans


def make_row(name: str, plan: Plan, shape: ModelShape, result: Divergence, base: Divergence, kv_mib: float) -> Row:
    """The row of one cache, ``result``, beside that of the f16 cache, ``base``."""
    return Row(
        name=name,
        bits_per_value=plan.bits_per_value(shape),
        bits_with_ends=plan.bits_with_ends(shape, ENDS_CTX),
        kv_bytes_per_token=plan.bytes_per_token(shape),
        kld_mean=result.kld_mean,
        kld_median=result.kld_median,
        kld_p999=result.kld_p999,
        same_top=result.same_top,
        ppl=result.ppl,
        ppl_ratio=result.ppl / base.ppl,
        kv_mib=kv_mib,
        kld_se=result.kld_se,
        kind=kind_of(plan, shape),
    )
