"""The arguments and options that several commands take, in the same words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from normscope.errors import InvalidConfig

Target = Annotated[
    str, typer.Argument(help="A model, or a function that builds one: file.py:name or package.module:name.")
]
Data = Annotated[
    str, typer.Option(help="digits, cifar10, random:3x32x32 (random inputs of that shape), or file.py:loader.")
]
Loss = Annotated[
    str | None,
    typer.Option(help="mse, or file.py:name of a loss_fn(model, batch); else cross-entropy or the model's own .loss."),
]
Optimizer = Annotated[
    str,
    typer.Option(
        help="sgd, momentum (SGD with 0.9), adam, adamw or any class of torch.optim, with options as in "
        "adamw,betas=0.9:0.95,weight_decay=0.1; or file.py:name of a factory(params, lr) or an optimizer."
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples in a mini-batch of digits, cifar10 or random inputs.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto.")]
DataDir = Annotated[Path | None, typer.Option(help="Where CIFAR-10 lies; else NORMSCOPE_DATA, else it is downloaded.")]


def refuse_given(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse the first of these options that was given on the command line, whatever its value."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InvalidConfig(f"{why} and takes no --{name.replace('_', '-')}: leave out one of them")
