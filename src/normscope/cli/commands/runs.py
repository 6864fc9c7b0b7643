"""`normscope runs`: what a sweep's folder holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(help="The folder that `normscope sweep` was given as --out.")],
) -> None:
    """List the finished runs of a sweep: in what they differ, what became of them, and their last accuracies."""
    from normscope.sweeps.listing import listing

    found = listing(folder)
    columns = ("key", *found.axes, "outcome", "epochs", "train", "test", "seconds")
    print(_aligned([columns, *found.rows]))
    print(found.summary)
    found.raise_damaged()


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; by hand, since rich takes seconds for thousands of rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
