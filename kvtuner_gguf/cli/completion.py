"""`kvtuner-gguf completion`: what a shell needs to complete commands, options, files and cache types."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.report.shell import PROGRAM

SHELLS = ("bash", "zsh", "fish")
# what the program looks for in its environment when a shell asks it
VARIABLE = "_KVTUNER_GGUF_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash: kvtuner-gguf completion bash > ~/.local/share/bash-completion/completions/kvtuner-gguf
    zsh:  kvtuner-gguf completion zsh > a file _kvtuner-gguf in a folder of $fpath
    fish: kvtuner-gguf completion fish > ~/.config/fish/completions/kvtuner-gguf.fish

    Bash must be of version 4.4 or later.
    """
    found = get_completion_class(shell)
    if found is None:
        raise KvtunerError(f"this version of click completes nothing in {shell}: install click 8.1 or later")
    click.echo(found(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
