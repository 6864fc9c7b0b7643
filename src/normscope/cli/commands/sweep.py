"""`normscope sweep`: train many networks, and never lose or repeat one."""

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.options import DataDir


def command(
    spec: Annotated[Path, typer.Argument(help="A TOML file: \\[base], a run's config, and \\[axes], lists of values.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs; those that it holds are not trained again.")],
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs at once; by default one per processor, 1 on a GPU; or what a cluster has room for."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each process; they belong to what fixes bits.")] = 1,
    data_dir: DataDir = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Run on a Ray cluster: HOST:PORT of its head, or auto for this machine's."
        ),
    ] = None,
) -> None:
    """Train every run of a spec that the folder does not hold yet. Interrupted or killed, the same command goes on."""
    from normscope.sweeps.runs import MISSING
    from normscope.sweeps.sweep import sweep

    runs = sweep(spec, out, workers=workers, threads=threads, data_dir=data_dir, ray=ray)
    outcomes = [word for word in runs["outcome"].values.ravel().tolist() if word != MISSING]  # which nobody asked for
    counts = ", ".join(f"{outcomes.count(word)} {word}" for word in dict.fromkeys(sorted(outcomes)))
    print(f"{len(outcomes)} runs: {counts}".replace("learns", "learn"))
    print(out)
