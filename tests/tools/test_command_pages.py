"""The pages of docs/commands are what the commands say of themselves, and none of their options is left out."""

from __future__ import annotations

import click
import command_pages
import pytest
from command_pages import FOLDER, INDEX, pages

from kvtuner_gguf.cli import main

COMMANDS = main.list_commands(click.Context(main))
REMEDY = "run `make docs-pages`"


def made_up(*options: click.Option, text: str = "Does one thing. And another.\n\n\b\n  a | b\n  c") -> click.Group:
    return click.Group("made-up", commands={"do": click.Command("do", params=[*options], help=text)})


def test_the_pages_are_those_that_the_commands_give() -> None:
    there = {path.name: path.read_text() for path in FOLDER.glob("*")}
    assert there == pages(), REMEDY


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_its_place(name: str) -> None:
    text = (FOLDER / f"{name}.md").read_text()
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert all(f"`{word}`" in text for word in [*option.opts, *option.secondary_opts]), (option.name, REMEDY)


def test_every_command_is_in_the_list() -> None:
    text = (FOLDER / INDEX).read_text()
    assert all(f"[{name}]({name}.md)" in text for name in COMMANDS), REMEDY


def test_an_option_more_changes_a_page() -> None:
    before = pages(made_up())["do.md"]
    option = click.Option(
        ["-n", "--new"], type=click.IntRange(min=2), default=3, show_default=True, help="Say *how* a|b."
    )
    after = pages(made_up(option))["do.md"]
    assert "## Options" not in before
    assert r"| `-n`, `--new` `N` | Say \*how\* a\|b. At least 2. Default: `3`. |" in after


@pytest.mark.parametrize(
    ("option", "row"),
    [
        (click.Option(["--kind"], type=click.Choice(["a", "b"]), help="Kind."), "| `--kind` `a` or `b` | Kind. |"),
        (
            click.Option(["--on/--off"], default=True, show_default=True, help="H."),
            "| `--on`, `--off` | H. Default: `--on`. |",
        ),
        (click.Option(["--none"], show_default=True, help="H."), "| `--none` `TEXT` | H. |"),
        (click.Option(["--cores"], type=int, show_default="all", help="H."), "| `--cores` `N` | H. Default: `all`. |"),
        (
            click.Option(["--x"], metavar="A|B", help="`a|<b>` c|d"),
            r"| `--x` `A` or `B` | <code>a&#124;&lt;b&gt;</code> c\|d |",
        ),
        (click.Option(["-v"], count=True, help="Say more."), "| `-v` | Say more. |"),
    ],
    ids=["choice", "switch", "no default", "default in words", "bars", "count"],
)
def test_an_option_as_a_row(option: click.Option, row: str) -> None:
    assert row in pages(made_up(option))["do.md"].splitlines()


def test_a_hidden_option_is_not_shown() -> None:
    assert "--secret" not in pages(made_up(click.Option(["--secret"], hidden=True)))["do.md"]


def test_text_that_is_not_to_be_wrapped_is_code() -> None:
    assert "```\na | b\nc\n```" in pages(made_up())["do.md"]


def test_pages_of_commands_that_are_gone_are_removed(tmp_path) -> None:
    (tmp_path / "gone.md").write_text("")
    command_pages.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(pages())
