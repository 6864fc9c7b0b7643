"""The table of claims on the terminal."""

from collections.abc import Sequence

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normscope.cli.console import console
from normscope.statistics.score import counted, score_line
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED, VERDICTS, Verdict

NARROW = 100
"""Columns below which a table of five would break every word."""

COLORS = {REPRODUCED: "green", NOT_REPRODUCED: "red", NOT_ENOUGH: "yellow"}


def print_claims(claims: Sequence[Verdict]) -> None:
    """One row a claim: where, statement, the paper's value, the measured one with its interval, the verdict. On narrow
    terminals a short paragraph each."""
    output = console()
    if not claims:
        output.print("no claims: what the paper claims of deep networks is not asked of shallow ones")
        return
    if output.width < NARROW:
        for claim in claims:
            output.print(Text(claim.where, style="bold"), Text(claim.verdict, style=COLORS[claim.verdict]), sep=": ")
            paper = f"paper {claim.paper}; " if claim.paper else ""
            output.print(Padding(Text(f"{claim.statement}: {paper}measured {claim.measured}"), (0, 0, 0, 2)))
    else:
        output.print(_table(claims))
    for kind, *counts in counted(claims)[1:]:
        output.print(f"{kind}: " + ", ".join(f"{n} {word}" for n, word in zip(counts, VERDICTS, strict=True)))
    if line := score_line(claims):
        output.print(line)
    output.print(", ".join(f"{sum(c.verdict == word for c in claims)} {word}" for word in VERDICTS))


def _table(claims: Sequence[Verdict]) -> Table:
    table = Table("where", "claim", "paper", "measured", "verdict", show_lines=False, pad_edge=False)
    for claim in claims:
        cells = (claim.where, claim.statement, claim.paper or "–", claim.measured)
        table.add_row(*map(Text, cells), Text(claim.verdict, style=COLORS[claim.verdict]))
    return table
