"""`normscope diagnose`: what is wrong with my model or its training? The findings alone, in seconds."""

from typing import Annotated

import typer

from normscope.cli.console import text_width
from normscope.cli.options import BatchSize, Data, DataDir, Device, Loss, Optimizer, Target

FAIL_ON = ("never", "fault")


def command(
    target: Target,
    data: Data = "digits",
    loss: Loss = None,
    optimizer: Optimizer = "momentum",
    lr: Annotated[
        float | None, typer.Option(help="The rate that you train at, which is then judged too; else rates are tried.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Mini-batches that you train on; 40 if not given.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Of one processor, for all trainings together.")] = 10.0,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    data_dir: DataDir = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    fail_on: Annotated[str, typer.Option(help="fault: exit 1 where anything is wrong; never.")] = "never",
) -> None:
    """Say what is wrong with a model or its training, and what mends it."""
    from normscope.cli.target import load_target, refuse_misspelled
    from normscope.errors import unknown

    if fail_on not in FAIL_ON:
        raise unknown("--fail-on", fail_on, FAIL_ON)
    refuse_misspelled(target, {"--data": data, "--loss": loss, "--optimizer": optimizer})  # before torch is imported
    from normscope.cli.batches import batches_of, loss_of, optimizer_of
    from normscope.diagnosis.diagnose import diagnose
    from normscope.diagnosis.words import findings_json, findings_text, has_fault
    from normscope.model.build import eager
    from normscope.model.summary import num_outputs
    from normscope.runtime.device import usable_device

    model = eager(load_target(target), device=usable_device(device))
    tree = diagnose(
        model,
        batches_of(data, batch_size, data_dir=data_dir, num_outputs=lambda x: num_outputs(model, x)),
        optimizer=optimizer_of(optimizer),
        loss_fn=loss_of(loss),
        lr=lr,
        steps=steps,
        seconds=seconds,
    )
    print(findings_json(tree) if json else findings_text(tree, width=text_width()))
    if fail_on == "fault" and has_fault(tree):
        raise typer.Exit(1)
