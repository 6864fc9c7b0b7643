"""`normscope diagnose`: what is wrong with my model or its training? The findings alone, in seconds."""

from pathlib import Path
from typing import Annotated

import typer

FAIL_ON = ("never", "fault")


def command(
    target: Annotated[
        str, typer.Argument(help="A model, or a function that builds one: file.py:name or package.module:name.")
    ],
    data: Annotated[
        str, typer.Option(help="digits, cifar10, random:3x32x32 (random inputs of that shape), or file.py:loader.")
    ] = "digits",
    loss: Annotated[
        str | None,
        typer.Option(
            help="mse, or file.py:name of a loss_fn(model, batch); else cross-entropy or the model's own .loss."
        ),
    ] = None,
    optimizer: Annotated[
        str, typer.Option(help="sgd, momentum (SGD with 0.9), adam, adamw, or file.py:name of a factory(params, lr).")
    ] = "momentum",
    lr: Annotated[
        float | None, typer.Option(help="The rate that you train at, which is then judged too; else rates are tried.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Mini-batches that you train on; 40 if not given.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Of one processor, for all trainings together.")] = 10.0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Examples in a mini-batch of digits, cifar10 or random inputs.")
    ] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto.")] = "auto",
    data_dir: Annotated[
        Path | None, typer.Option(help="Where CIFAR-10 lies; else NORMSCOPE_DATA, else it is downloaded.")
    ] = None,
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
    print(findings_json(tree) if json else findings_text(tree))
    if fail_on == "fault" and has_fault(tree):
        raise typer.Exit(1)
