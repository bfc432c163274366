"""The plans of ``configs``, which `kvtuner-gguf tune` made, and of ``configs/kvtuner``, of `import-kvtuner`."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtuner_gguf.plan.centers import DEFAULT_SPAN
from kvtuner_gguf.plan.ends import ENDS_CTX, Ends
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.published.bitstable import NOTE, parse_types
from kvtuner_gguf.published.forms import read_table

FOLDER = Path(__file__).parents[1] / "configs" / "kvtuner"
TABLES = FOLDER / "tables.json"
PLANS = sorted(path for path in FOLDER.glob("*.json") if path != TABLES)
TUNED = sorted(path for path in FOLDER.parent.glob("*.json") if path.name != "plan.schema.json")
BITS = {"q8_0": 8, "q4_0": 4, "q2_nl": 2}

# architecture, layers, KV heads; the head size is 128 for all
SHAPES = {
    "Meta-Llama-3.1-8B-Instruct": ("llama", 32, 8),
    "Mistral-7B-Instruct-v0.3": ("llama", 32, 8),
    "Qwen2.5-3B-Instruct": ("qwen2", 36, 2),
    "Qwen2.5-7B-Instruct": ("qwen2", 28, 4),
}

# the tables that the paper names by their mean bits
LABELS = {
    ("Meta-Llama-3.1-8B-Instruct", "pertoken"): {"C3.59", "C5.44"},
    ("Meta-Llama-3.1-8B-Instruct", "kivi"): {"C3.25", "C4.91"},
    ("Mistral-7B-Instruct-v0.3", "pertoken"): {"C3.78", "C5.38"},
    ("Mistral-7B-Instruct-v0.3", "kivi"): {None},
    ("Qwen2.5-3B-Instruct", "pertoken"): {"C4.00", "C5.06"},
    ("Qwen2.5-3B-Instruct", "kivi"): {"C3.17", "C3.44"},
    ("Qwen2.5-7B-Instruct", "pertoken"): {"C4.00", "C5.00"},
    ("Qwen2.5-7B-Instruct", "kivi"): {"C3.92", "C5.96"},
}
CUT = {"C3.92": 3.9286}  # the paper cuts this mean where it rounds the others


# architecture, layers, KV heads, head size
TUNED_SHAPES = {"smollm2-135m": ("llama", 30, 3, 64), "qwen2.5-coder-1.5b": ("qwen2", 28, 2, 128)}


def readme_row(path: Path) -> str:
    text = (FOLDER.parent / "README.md").read_text()
    return next((line for line in text.splitlines() if f"`{path.name}`" in line), "")


def payload_bits(plan: Plan) -> float:
    return sum(BITS[pair.k] + BITS[pair.v] for pair in plan.pairs) / (2 * plan.n_layer)


def test_there_are_two_plans_for_each_model_and_mode() -> None:
    assert len(PLANS) == 16
    found: dict[tuple[str, str], list] = {}
    for path in PLANS:
        facts = Plan.load(path).provenance
        found.setdefault((facts["model"], facts["mode"]), []).append(facts.get("label"))
    assert {key: set(labels) for key, labels in found.items()} == LABELS
    assert all(len(labels) == 2 for labels in found.values())


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_is_what_a_fresh_import_gives(path: Path, tmp_path: Path) -> None:
    facts = Plan.load(path).provenance
    table = read_table(TABLES, "_".join(facts[key] for key in ("model", "mode", "preset")))
    table.described(table.plan(parse_types())).save(tmp_path / "fresh.json")
    assert (tmp_path / "fresh.json").read_text() == path.read_text()


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_has_the_bits_that_the_paper_names(path: Path) -> None:
    plan = Plan.load(path)
    label = plan.provenance.get("label")
    bits = payload_bits(plan)
    if label is None:
        assert path.stem.endswith(f"{bits:.2f}")
    else:
        assert path.stem.endswith(label.lower())
        assert bits == pytest.approx(CUT.get(label, float(label[1:])), abs=0.005 + 1e-9)
    assert plan.provenance["payload_bits"] == round(bits, 4)
    assert plan.provenance["true_bits"] == round(plan.bits_per_value(), 4)
    assert plan.bits_per_value() > bits
    assert plan.provenance["note"] == NOTE == "from the paper, not measured with these types"


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_knows_its_model(path: Path) -> None:
    plan = Plan.load(path)
    architecture, n_layer, heads = SHAPES[plan.provenance["model"]]
    shape = plan.model
    assert (shape.architecture, shape.n_layer, shape.head_dim_k, shape.head_dim_v) == (architecture, n_layer, 128, 128)
    assert shape.n_head_kv == (heads,) * n_layer
    assert shape.fingerprint is None


def test_the_readme_lists_every_plan() -> None:
    for path in PLANS:
        plan = Plan.load(path)
        for cell in (
            f"{payload_bits(plan):.4f}",
            f"{plan.bits_per_value():.4f}",
            str(plan.bytes_per_token(plan.model)),
        ):
            assert f"| {cell} |" in readme_row(path), (path.name, cell)


@pytest.mark.parametrize("path", TUNED, ids=lambda path: path.stem)
def test_a_tuned_plan_is_of_its_model_centered_and_of_the_bits_in_its_name(path: Path) -> None:
    plan = Plan.load(path)
    name, bits = path.stem.rsplit("-", 1)
    architecture, n_layer, heads, head_dim = TUNED_SHAPES[name]
    shape = plan.model
    assert (shape.architecture, shape.head_dim_k, shape.head_dim_v) == (architecture, head_dim, head_dim)
    assert shape.n_head_kv == (heads,) * n_layer
    assert shape.fingerprint is not None
    # a type more or less in one layer and side of SmolLM2 is 0.0167 bits
    assert float(bits) - 0.0167 < plan.bits_with_ends(shape, ENDS_CTX) <= float(bits)
    assert plan.ends == Ends(4, 128, "q8_0")
    assert all(plan.centers.k), "all K types of these plans are quantized"
    assert plan.centers.span == DEFAULT_SPAN
    assert all(plan.scales.k)


@pytest.mark.parametrize("path", TUNED, ids=lambda path: path.stem)
def test_the_readme_has_the_figures_of_a_tuned_plan(path: Path) -> None:
    plan = Plan.load(path)
    assert f"| {plan.bits_per_value():.3f} | {plan.bytes_per_token(plan.model)} |" in readme_row(path)
