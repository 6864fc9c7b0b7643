"""`normscope layers`: what of a network would be watched, in order."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from normscope.cli.console import console
from normscope.cli.options import BatchSize, DataDir, Loss, Target


def command(
    target: Target,
    data: Annotated[
        str | None,
        typer.Option(
            help="As for `normscope check`: shows calls in the order of one forward pass; else that of registration."
        ),
    ] = None,
    data_dir: DataDir = None,
    loss: Loss = None,
    batch_size: BatchSize = 32,
) -> None:
    """List the layers of a network that are watched, in order, by the names that every instrument takes."""
    from normscope.cli.target import load_target, refuse_misspelled

    refuse_misspelled(target, {"--data": data, "--loss": loss})  # before torch is imported
    from normscope.cli.batches import batches_of, loss_of
    from normscope.model.summary import Call, calls, num_outputs, registered

    model = load_target(target)
    if data is None:
        rows = registered(model)
    else:
        source = batches_of(data, batch_size, data_dir=data_dir, num_outputs=lambda inputs: num_outputs(model, inputs))
        rows = calls(model, source, loss_fn=loss_of(loss))
    table = Table(box=None)
    for head in ("", "layer", "type", "weight", *([] if data is None else ["output"])):
        table.add_column(head, overflow="fold")  # names are told in full on narrow terminals too

    def shape(call: tuple[int, ...]) -> str:
        return " × ".join(map(str, call))

    def cells(place: int, call: Call) -> list[Text]:
        texts = [str(place), call.name or "(the model itself)", call.type, shape(call.weight)]
        return [Text(text) for text in (texts if data is None else [*texts, shape(call.output)])]

    for place, call in enumerate(rows, 1):
        table.add_row(*cells(place, call))
    console().print(table)
    if data is None:
        print("In the order of registration; with --data in the order of the calls.")
