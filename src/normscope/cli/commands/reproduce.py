"""`normscope reproduce`: measure the paper's exhibits, judge its claims, write the report."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.options import DataDir, Device


def command(
    exhibits: Annotated[
        list[str] | None, typer.Argument(help="Names as in `normscope exhibits`; all of the paper if none is given.")
    ] = None,
    data: Annotated[str, typer.Option(help="digits (embedded) or cifar10.")] = "digits",
    data_dir: DataDir = None,
    seeds: Annotated[int, typer.Option(min=1, help="Networks of this many seeds; a verdict needs three.")] = 3,
    net: Annotated[
        str, typer.Option(help="The network: resnet110 is the paper's; resnet20, plain20, ...")
    ] = "resnet110",
    batch_size: Annotated[int, typer.Option(help="Examples in a mini-batch.")] = 128,
    scale: Annotated[
        str,
        typer.Option(
            help="Size of the exhibits that train to the end: quick (digits, minutes), short (CIFAR-10, two to "
            "three hours), standard (CIFAR-10, longer), reduced (figure 1 to the end, 13 core-hours) or full (the "
            "paper's own)."
        ),
    ] = "quick",
    train: Annotated[
        bool,
        typer.Option(
            help="Whether runs (`--scale reduced`) and rungs (apart, apart_rates) that are missing are measured, or "
            "those that are there are judged."
        ),
    ] = True,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Train on a Ray cluster, as `normscope sweep --ray` does."),
    ] = None,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and report; what it holds is not measured again.")
    ] = None,
    note: Annotated[
        str,
        typer.Option(help="A sentence for the report's head, such as what is special about the data; it is kept."),
    ] = "",
) -> None:
    """Reproduce the paper's figures, tables and claims on real data; ends with the claims and the report's path."""
    from normscope.cli.claims import print_claims
    from normscope.data import load_data
    from normscope.paper.exhibit import Setting, chosen
    from normscope.paper.manifest import write_manifest
    from normscope.paper.measurement import reproduce
    from normscope.paper.reproduction import report_reproduction
    from normscope.paper.scale import scale_of
    from normscope.runtime.device import usable_device

    names = list(exhibits or [])
    chosen(names)
    scale_of(scale)
    device = usable_device(device)
    folder = out or Path("reproduction") / data
    images = load_data(data, data_dir=data_dir, device=device)
    setting = Setting(
        images,
        seeds=tuple(range(seeds)),
        device=device,
        net=net,
        batch_size=batch_size,
        scale=scale,
        data_dir=data_dir,
        trains=train,
        ray=ray,
    )
    reproduce(names, setting, folder)
    write_manifest(folder, ["normscope", *sys.argv[1:]], note)
    path, claims = report_reproduction(folder)
    print_claims(claims)
    print(path)
