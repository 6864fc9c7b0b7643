"""`normscope watch`: a training that `ns.watch` is beside, live in a terminal."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(help="The folder that ns.watch(..., out=...) was given.")],
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks.")] = 2.0,
) -> None:
    """Show a flight record while it is written: loss, distance to the edge, alarms; Ctrl-C ends."""
    import time

    from normscope.monitoring.flight import read_flight
    from normscope.monitoring.report import terminal_lines

    if once:
        print("\n".join(terminal_lines(read_flight(folder))))
        return
    from rich.live import Live
    from rich.text import Text

    with Live(Text("\n".join(terminal_lines(read_flight(folder)))), auto_refresh=False) as live:
        while True:
            try:
                time.sleep(seconds)
            except KeyboardInterrupt:
                return
            live.update(Text("\n".join(terminal_lines(read_flight(folder)))), refresh=True)
