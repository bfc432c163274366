"""What a report shows, read from files whose kind is seen in what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvtuner_gguf.errors import KvtunerError, about
from kvtuner_gguf.evaluation.rows import Row, rows_from_json
from kvtuner_gguf.files import artifact
from kvtuner_gguf.gguffile.stored_plan import given_plan, is_gguf
from kvtuner_gguf.plan.front import SCHEMA as FRONT
from kvtuner_gguf.plan.front import Front
from kvtuner_gguf.plan.pairs import F16
from kvtuner_gguf.plan.plan import SCHEMA as PLAN
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.html.findings import Findings
from kvtuner_gguf.report.html.speeds import Speed, is_speeds, speeds_from_json
from kvtuner_gguf.tuning.prices import SCHEMA as PRICES
from kvtuner_gguf.tuning.prices import Prices

# of a tuning's folder; the others are of no use on a page
_OF_TUNING = ("front.json", "fisher.json", "prices.json")
_PASSED_OVER = ("kvtuner.tuning/", "kvtuner.candidates/", "kvtuner.profile/", "kvtuner.groups/")


@dataclass
class _Gathered:
    plans: dict[str, Plan] = field(default_factory=dict)
    fronts: dict[str, Front] = field(default_factory=dict)
    prices: list[Prices] = field(default_factory=list)
    rows: dict[str, Sequence[Row]] = field(default_factory=dict)
    speeds: list[Speed] = field(default_factory=list)

    def take(self, path: Path, data: Any) -> None:
        """Raises `KvtunerError` where ``data`` is nothing that a report shows."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema == PLAN:
            self._take_plan(path, Plan.from_json(data))
        elif schema == FRONT:
            self.fronts[_name(path, self.fronts)] = Front.from_json(data)
        elif schema == PRICES:
            self.prices.append(Prices.from_json(data))
        elif is_speeds(data):
            self.speeds += speeds_from_json(data)
        elif isinstance(data, list) and data:
            self.rows[_name(path, self.rows)] = rows_from_json(data)
        elif not (isinstance(schema, str) and schema.startswith(_PASSED_OVER)):
            raise KvtunerError(
                "it holds nothing that a report shows: give plans, annotated models, the folder of a tuning, or the "
                "JSON of eval or llama-bench"
            )

    def take_model(self, path: Path) -> None:
        """The plan in the model at ``path``; raises `KvtunerError` where there is none."""
        self._take_plan(path, given_plan(path))

    def _take_plan(self, path: Path, plan: Plan) -> None:
        """Centers and scales in the folder of a tuning are plans, too, which quantize nothing."""
        is_measured_only = plan.centers is not None or plan.scales is not None
        if not (is_measured_only and set(plan.pairs) == {F16}):
            self.plans[_name(path, self.plans)] = plan


def gather(paths: Iterable[Path], model: str | None = None) -> Findings:
    """What the files at ``paths`` and the folders of tunings among them hold.

    Raises `KvtunerError` naming the file that cannot be read, is damaged or is none of them.
    """
    found = _Gathered()
    for path in paths:
        for file in _files(path):
            if is_gguf(file):
                found.take_model(file)
                continue
            found_in = artifact.load(file, lambda data: data, "result")
            with about(file):
                found.take(file, found_in)
    return Findings(found.plans, found.fronts, found.prices, found.rows, found.speeds, model)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [path / name for name in _OF_TUNING if (path / name).exists()]
    if not files:
        raise KvtunerError(f"{path} is no folder of a tuning that has ended: give plans, or tune first")
    return files


def _name(path: Path, taken: Mapping[str, object]) -> str:
    """A short name of the file: with its folder's where another one has the same, or where all such are called so."""
    name = path.parent.name if path.name in _OF_TUNING and path.parent.name else path.name
    return name if name not in taken else str(path)
