"""`normscope claims`: what is claimed, and with which thresholds, before anything is measured."""

from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normscope.cli.console import console

NARROW = 140
"""Columns below which a table of seven would break words: there a paragraph a claim."""


def command(
    exhibits: Annotated[
        list[str] | None, typer.Argument(help="Names as in `normscope exhibits`; all if none is given.")
    ] = None,
) -> None:
    """List every claim with its threshold: whose it is, what must hold, and of which networks it is judged."""
    from normscope.paper.exhibit import chosen
    from normscope.statistics.verdict import KINDS

    output = console()
    narrow = output.width < NARROW
    table = Table("exhibit", "where", "claim", "required", "paper", "whose", "judged on", pad_edge=False)
    wanted = [(exhibit.name, claim) for exhibit in chosen(list(exhibits or [])) for claim in exhibit.claims]
    for name, claim in wanted:
        whose = f"{claim.kind}, in-sample" if claim.in_sample else claim.kind
        paper, scope = str(claim.paper) or "–", claim.scope.words or "any network"
        if narrow:
            output.print(Text(f"{name}, {claim.where}", style="bold"))
            said = f"{claim.statement}. Required: {claim.requirement}; paper: {paper}; {whose}, judged on {scope}."
            output.print(Padding(Text(said), (0, 0, 0, 2)))
        cells = (name, claim.where, claim.statement, claim.requirement, paper, whose, scope)
        table.add_row(*map(Text, cells))
    if not narrow:
        output.print(table)
    counts = {kind: sum(claim.kind == kind for _, claim in wanted) for kind in KINDS}
    output.print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
