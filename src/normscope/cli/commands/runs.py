"""`normscope runs`: what a sweep's folder holds."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from normscope.cli.console import console


def command(
    folder: Annotated[Path, typer.Argument(help="The folder that `normscope sweep` was given as --out.")],
) -> None:
    """List the finished runs of a sweep: in what they differ, what became of them, and their last accuracies."""
    from normscope.sweep.listing import listing

    found = listing(folder)
    table = Table("key", *found.axes, "outcome", "epochs", "train", "test", "seconds", box=None, pad_edge=False)
    for row in found.rows:
        table.add_row(*map(Text, row))
    console().print(table)
    print(found.summary)
    found.raise_damaged()
