"""The colours of types: one list, which the page of the server follows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvtuner_gguf.plan.cachetypes import CACHE_TYPES, cache_type
from kvtuner_gguf.report.html import colours
from kvtuner_gguf.report.html.colours import cell_colours

HEADER = Path(__file__).parents[2] / "cpp/include/kvtuner-page.h"
NUMBER = r"\d+(?:\.\d+)?"


@pytest.fixture(scope="module")
def cell() -> str:
    """The function of the server's page that colours a cell."""
    found = re.search(r"^inline std::string kvtuner_cell\(.*?^}", HEADER.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


def test_the_page_of_the_server_has_the_colours_of_the_report(cell: str) -> None:
    stops = re.findall(r"\{ (\d+), (\d+), (\d+) \}", cell)
    assert tuple(tuple(map(int, stop)) for stop in stops) == colours._STOPS
    ends = re.search(rf"std::min\(std::max\(.*, ({NUMBER})\), ({NUMBER})\);", cell)
    assert ends
    assert tuple(map(float, ends.groups())) == (colours._LOW, colours._HIGH)
    steps = re.search(rf"std::log\(bits / ({NUMBER})\) / std::log\(({NUMBER})\)", cell)
    assert steps
    assert tuple(map(float, steps.groups())) == (colours._LOW, colours._HIGH / colours._LOW)


def test_the_page_of_the_server_has_the_text_of_the_report(cell: str) -> None:
    shares = re.findall(rf"({NUMBER}) \* rgb\[\d\]", cell)
    assert tuple(map(float, shares)) == colours._LIGHT
    middle = re.search(rf"> ({NUMBER});", cell)
    assert middle
    assert float(middle[1]) == colours._MIDDLE
    assert re.findall(r'"(#\w{6})"', cell) == [colours._DARK_INK, colours._LIGHT_INK]


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_text_is_readable(name: str) -> None:
    """A contrast of 3, which large or bold text needs, at least."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lights = sorted(map(light, cell_colours(cache_type(name).bits_per_value)))
    assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 3
