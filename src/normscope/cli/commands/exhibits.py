"""`normscope exhibits`: what of the paper can be reproduced."""

from rich.console import Console
from rich.table import Table


def command() -> None:
    """List the figures, tables and claims of the paper that can be reproduced."""
    from normscope.exhibits.exhibit import exhibits

    table = Table("name", "in the paper", "what it shows", box=None)
    for exhibit in exhibits().values():
        table.add_row(exhibit.name, exhibit.where, exhibit.title)
    Console().print(table)
