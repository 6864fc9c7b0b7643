"""`normscope report`: make the report again from saved results."""

from pathlib import Path
from typing import Annotated

import typer


def command(folder: Annotated[Path, typer.Argument(help="A folder of results.")]) -> None:
    """Make the report again from the results in a folder, of `reproduce`, `check` or `ns.watch`; measures nothing."""
    if (folder / "check.nc").is_file():
        from normscope.checkup.report import report

        print(report(folder / "check.nc", folder / "report.html"))
        return
    if (folder / "watch.json").is_file():
        from normscope.monitoring.report import report_flight

        print(report_flight(folder))
        return
    from normscope.cli.claims import print_claims
    from normscope.paper.reproduction import report_reproduction

    path, claims = report_reproduction(folder)
    print_claims(claims)
    print(path)
