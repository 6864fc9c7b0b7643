"""`normscope claims`: what is claimed, and with which thresholds, before anything is measured."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from normscope.cli.console import console


def command(
    exhibits: Annotated[
        list[str] | None, typer.Argument(help="Names as in `normscope exhibits`; all if none is given.")
    ] = None,
) -> None:
    """List every claim with its threshold: whose it is, what must hold, and of which networks it is judged."""
    from normscope.paper.exhibit import chosen
    from normscope.statistics.verdict import KINDS

    table = Table("exhibit", "where", "claim", "required", "paper", "whose", "judged on", pad_edge=False)
    wanted = [(exhibit.name, claim) for exhibit in chosen(list(exhibits or [])) for claim in exhibit.claims]
    for name, claim in wanted:
        whose = f"{claim.kind}, in-sample" if claim.in_sample else claim.kind
        cells = (name, claim.where, claim.statement, claim.requirement, str(claim.paper) or "–", whose)
        table.add_row(*map(Text, cells), Text(claim.scope.words or "any network"))
    output = console()
    output.print(table)
    counts = {kind: sum(claim.kind == kind for _, claim in wanted) for kind in KINDS}
    output.print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
