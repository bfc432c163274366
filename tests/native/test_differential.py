"""Python and the library say the same of every plan; `make fuzz` compares them for longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.native.differential import INPUTS, batch, differences, of_library, of_python
from tests.native.test_fuzz import FUZZ

pytestmark = pytest.mark.native

NO_VALUES = "center_v is no longer used, since centers give values nothing"
# what is decided, of inputs that the two once read differently or as nobody would expect
DECIDED = {
    "bom.json": "plan ",
    "two-boms.json": "line 1, column 1: a value is expected",
    "nan.json": "a value is expected",
    "infinity.json": "a value is expected",
    "nul.json": "line 1, column 201: something follows the value",
    "surrogate.json": "half of a surrogate pair",
    "pair.json": "plan ",
    "twice-a-name.json": "the name 'schema' is there twice",
    "too-large.json": "a number is too large",
    "many-digits.json": "a number is too large",
    "minus-zero.json": "plan ",
    "64-levels.json": "plan ",
    "65-levels.json": "nested in more than 64 levels",
    "deep-and-cut.json": "line 1, column 65: nested in more than 64 levels",
    "long.json": "more than 16 MiB",
    "model-of-one-layer.json": "the plan has 4 layers, the model 1",
    "odd-head.json": "layer 0: V type q4_0 has blocks of 32 values, which do not divide the head size 80",
    "center-of-values-first.json": f"layer 0: {NO_VALUES}: remove it",
    "center-of-values-later.json": "layer 0: the K center has 3 bytes",
    "center-of-values-null.json": "plan ",
    "center-of-values-wrong-type.json": "layer 1: unknown cache type 'q9_9' for V",
    "center-of-values-wrong-model.json": "'model.n_layer' is -1",
    "center-of-values-odd-head.json": f"layer 0: {NO_VALUES}: remove it",
    "model-center.json": "layer 0: the K center has 2 values, the layer 64",
    "span-null.json": "plan ",
    "span-smallest.json": "plan ",
    "span-largest.json": "plan ",
    "span-too-small.json": "the center span is 8: give a power of two from 16 to 65536",
    "span-half.json": "the center span is a number: give a power of two",
    "span-alone.json": "center_span is given, and no layer has a center: leave it out",
    "span-odd-alone.json": "the center span is 100",
    "span-of-zeros.json": "center_span is given, and no layer has a center",
    "span-after-centers.json": "layer 0: the K center has 3 bytes",
    "span-before-ends.json": "the center span is 100",
    "span-before-size.json": "the center span is 100",
    "span-whole.gguf": "plan ",
    "span-alone.gguf": "center_span is given, and no layer has a center: leave it out",
    "span-int32.gguf": "llama.attention.kv_cache.center_span is no uint32: annotate the model again",
    "span-before-ends.gguf": "the center span is 100",
    "span-without-types.gguf": "none",
    "scale-null.json": "plan ",
    "scale-with-center.json": "plan ",
    "scale-smallest.json": "plan ",
    "scale-number.json": "layer 0: the K scale is no base64: tune the model again",
    "scale-odd.json": "layer 0: the K scale has 3 bytes, which are no float16 values: tune the model again",
    "scale-nan.json": "layer 0: the K scale holds a value that is no number: tune the model again",
    "scale-negative.json": "layer 0: the K scale holds a value that is not above 0: tune the model again",
    "scale-zero.json": "layer 1: the K scale holds a value that is not above 0: tune the model again",
    "scale-minus-zero.json": "layer 0: the K scale holds a value that is not above 0",
    "scale-nan-and-zero.json": "layer 0: the K scale holds a value that is no number",
    "scale-of-zeros.json": "plan ",
    "scale-after-span.json": "the center span is 100",
    "scale-before-ends.json": "layer 0: the K scale has 3 bytes",
    "scale-after-model.json": "'model.n_layer' is -1",
    "scale-size.json": "layer 0: the K scale has 2 values, the layer 64: use a plan that was tuned for this model",
    "scale-size-after-center.json": "layer 0: the K center has 2 values, the layer 64",
    "scale.gguf": "plan ",
    "scale-short.gguf": "the K scales have 5 values, the model's layers 192: annotate the model again",
    "scale-doubles.gguf": "llama.attention.kv_cache.scale_k is no list of float32 values: annotate the model again",
    "scale-nan.gguf": "layer 0: the K scale holds a value that is no number",
    "scale-beyond-float16.gguf": "layer 0: the K scale holds a value that is no number",
    "scale-negative.gguf": "layer 0: the K scale holds a value that is not above 0",
    "scale-of-zeros.gguf": "plan ",
    "scale-after-span.gguf": "center_span is given, and no layer has a center",
    "scale-before-ends.gguf": "the K scales have 5 values",
    "ends-null.json": "plan ",
    "ends-more.json": "plan ",
    "ends-largest.json": "plan ",
    "ends-too-large.json": "the ends have 1048577 first positions: give a whole number of 0 to 1048576",
    "ends-half.json": "the ends have a number first positions",
    "ends-of-none-first.json": "the ends have neither first nor last positions: leave them out",
    "ends-type-nul.json": r"unknown type 'f16\x00' for the ends: use f16 or q8_0",
    "ends-after-centers.json": "layer 0: the K center has 3 bytes",
    "ends-before-model.json": "'ends' must be an object of {first, last, type}: see configs/plan.schema.json",
    "ends-after-model.json": "'model.n_layer' is -1",
    "ends-odd-head.json": "layer 3: K ends of type q8_0 have blocks of 32 values, which do not divide the head size 80",
    "ends-odd-head-v.json": "layer 0: V ends of type q8_0 have blocks of 32 values",
    "ends-odd-head-f16.json": "plan ",
    "ends-odd-head-unquantized.json": "plan ",
    "ends-odd-head-window.json": "plan ",
    "ends-odd-head-shared.json": "plan ",
    "ends-odd-head-latent.json": "plan ",
    "ends-largest.gguf": "plan ",
    "ends-too-large.gguf": "the ends have 1048577 first positions",
    "ends-first-missing.gguf": "exact_first is missing while others of the ends are there: annotate the model again",
    "ends-two-missing.gguf": "exact_first is missing while others of the ends are there",
    "ends-int32.gguf": "exact_first is no uint32: annotate the model again",
    "ends-list.gguf": "exact_last is no uint32",
    "ends-type-list.gguf": "exact_type is no text: annotate the model again",
    "ends-type-nul.gguf": "plan ",
    "ends-after-centers.gguf": "the K centers have 5 values, the model's layers 192",
    "ends-alone.gguf": "none",
    "ends-of-another.gguf": "plan ",
    "name-nul.gguf": "plan ",
    "key-nul.gguf": "plan ",
    "empty-key.gguf": "unreadable",
    "doubles.gguf": "center_k is no list of float32 values",
    "beyond-float16.gguf": "layer 0: the K center holds a value that is no number",
    "values-wrong-type.gguf": f"llama.attention.kv_cache.{NO_VALUES}: annotate the model again",
    "values-one-side.gguf": f"llama.attention.kv_cache.{NO_VALUES}: annotate the model again",
    "values-no-list.gguf": f"llama.attention.kv_cache.{NO_VALUES}: annotate the model again",
    "values-alone.gguf": "none",
    "alignment-64.gguf": "unreadable",
}


def test_both_say_the_same_of_all_seeds(tmp_path: Path) -> None:
    assert differences(FUZZ, INPUTS, tmp_path) == []


@pytest.mark.parametrize("file", DECIDED)
def test_both_say_what_is_decided(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(INPUTS[file])
    (found,) = of_library(FUZZ, [path])
    assert DECIDED[file] in found
    assert of_python(path) == found


def test_both_say_the_same_of_mutated_plans(tmp_path: Path) -> None:
    inputs = batch(random.Random(1), 5000)
    assert differences(FUZZ, inputs, tmp_path) == []
    verdicts = {str(of_python(tmp_path / file)).split()[0] for file in inputs}
    assert {"plan", "error", "none", "unreadable"} <= verdicts


def test_a_difference_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.native.differential.of_python", lambda _: "none")
    (line,) = differences(FUZZ, {"good.json": INPUTS["good.json"]}, tmp_path)
    assert "good.json: 'none' and 'plan " in line
