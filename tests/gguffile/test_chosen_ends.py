"""Which exact ends a new plan gets."""

from __future__ import annotations

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.chosen_ends import DEFAULT_ENDS, chosen_ends
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.shape import ModelShape

PLAIN = ModelShape("llama", (2, 2), 64, 128)
ODD = ModelShape("phi2", (2, 2), (64, 80), 64)
PARTLY = ModelShape("gemma3", (2, 2), (80, 64), 64, window=(512, 0))
WINDOWED = ModelShape("lfm2", (2, 2), 64, 64, window=512)
LATENT = ModelShape("deepseek2", (1, 1), 576, 512, latent=True)
SPARSE = ModelShape("minimax-m3", (2, 2), 128, 128)
WITHOUT = ModelShape("mamba", (2, 2), 64, 64, cache=(None, None))


def test_the_default() -> None:
    assert str(DEFAULT_ENDS) == "4+128:q8_0"
    assert chosen_ends(None, PLAIN) == DEFAULT_ENDS
    assert chosen_ends("none", PLAIN) is None


@pytest.mark.parametrize("shape", [WINDOWED, LATENT, SPARSE, WITHOUT], ids=lambda shape: shape.architecture)
def test_models_that_cannot_have_ends_go_without(shape: ModelShape) -> None:
    assert chosen_ends(None, shape) is None
    assert chosen_ends("none", shape) is None
    with pytest.raises(KvtunerError, match=f"no layer of this {shape.architecture} model can have exact ends"):
        chosen_ends("4+32", shape)


def test_a_type_that_does_not_fit_gives_way_unless_it_is_named() -> None:
    assert chosen_ends(None, ODD) == Ends(4, 128, "f16")
    assert chosen_ends("4+32", ODD) == Ends(4, 32, "f16")
    assert chosen_ends("4+32", PLAIN) == Ends(4, 32, "q8_0")
    assert chosen_ends("1+0:f16", PLAIN) == Ends(1, 0, "f16")
    assert chosen_ends(None, PARTLY) == DEFAULT_ENDS, "the layer of 80 values has a window, and no ends"
    with pytest.raises(KvtunerError, match=r"layer 1: K ends of type q8_0 have blocks of 32 values, .* head size 80"):
        chosen_ends("4+32:q8_0", ODD)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the ends are '': give FIRST+LAST or FIRST+LAST:TYPE, for example 4+128:q8_0, or none"),
        ("4", "give FIRST+LAST"),
        ("4+-1", "give FIRST+LAST"),
        ("4+32:", "give FIRST+LAST"),
        ("None", "give FIRST+LAST"),
        ("4+32:q4_0", "unknown type 'q4_0' for the ends: use f16 or q8_0"),
        ("0+0", "the ends have neither first nor last positions: leave them out"),
        ("4+99999999", "the ends have 99999999 last positions: give a whole number of 0 to 1048576"),
    ],
)
def test_other_text_is_refused(text: str, words: str) -> None:
    with pytest.raises(KvtunerError) as caught:
        chosen_ends(text, PLAIN)
    assert words in str(caught.value)
