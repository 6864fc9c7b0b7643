"""`normscope exhibits`: what of the paper can be reproduced."""

from rich.table import Table

from normscope.cli.console import console


def command() -> None:
    """List the figures, tables and claims of the paper that can be reproduced."""
    from normscope.paper.exhibit import exhibits

    table = Table("name", "in the paper", "what it shows", box=None, pad_edge=False)
    for exhibit in exhibits().values():
        table.add_row(exhibit.name, exhibit.where, exhibit.title)
    console().print(table)
