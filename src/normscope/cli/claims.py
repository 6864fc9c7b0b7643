"""The table of claims on the terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from normscope.cli.console import console
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED, Verdict

COLORS = {REPRODUCED: "green", NOT_REPRODUCED: "red", NOT_ENOUGH: "yellow"}


def print_claims(claims: Sequence[Verdict]) -> None:
    """One row a claim: where, statement, the paper's value, the measured one with its interval, the verdict."""
    table = Table("where", "claim", "paper", "measured", "verdict", show_lines=False, pad_edge=False)
    for claim in claims:
        cells = (claim.where, claim.statement, claim.paper or "–", claim.measured)
        table.add_row(*map(Text, cells), Text(claim.verdict, style=COLORS[claim.verdict]))
    output = console()
    output.print(table)
    output.print(", ".join(f"{sum(c.verdict == word for c in claims)} {word}" for word in COLORS))
