"""`normscope check`: how large a learning rate does my network take, what stops it, and what would help?"""

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.console import text_width
from normscope.cli.options import BatchSize, Data, DataDir, Device, Loss, Optimizer, Target, refuse_given

NOT_QUICK = ("steps", "accumulate", "precision", "clip_norm", "warmup", "scheduler", "train_steps", "repair")
"""Options that a prediction takes no account of."""


def command(
    context: typer.Context,
    target: Target,
    data: Data = "digits",
    loss: Loss = None,
    optimizer: Optimizer = "momentum",
    lr: Annotated[
        float | None,
        typer.Option(help="The rate that you train with, to be judged; then no other is searched, and no repair made."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Predict the rates from ten passes, in place of trying any.")
    ] = False,
    lr_range: Annotated[
        str | None, typer.Option(help="The range searched, as in 1e-5:0.1; 1e-7:1e3 if not given.")
    ] = None,
    accumulate: Annotated[int, typer.Option(min=1, help="Mini-batches whose mean gradient is one step's.")] = 1,
    precision: Annotated[str, typer.Option(help="Of the forward pass: fp32, bf16 or fp16 (with GradScaler).")] = "fp32",
    clip_norm: Annotated[float | None, typer.Option(help="Clip the gradient to this norm.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Steps over which the rate rises.")] = 0,
    scheduler: Annotated[
        str | None, typer.Option(help="file.py:name of a function(optimizer) that gives an LRScheduler.")
    ] = None,
    train_steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Steps of the training that a rate is wanted for: the best trials go on to 2 and 4 times --steps, and "
            "how the best rate moves is extrapolated.",
        ),
    ] = None,
    cooldown: Annotated[
        bool, typer.Option("--cooldown", help="That training's rate falls to 0 over its last fifth.")
    ] = False,
    batch_size: BatchSize = 32,
    steps: Annotated[int, typer.Option(min=2, help="Length of every short descent, in mini-batches.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Initializations, and orders of the batches.")] = 2,
    repair: Annotated[
        list[str] | None,
        typer.Option(
            help="final, batch, group, layer, rms, instance, tanh, xavier_uniform, xavier_normal, kaiming_normal, "
            "orthogonal, zero_residual, pre_norm, qk_norm, small_residual, small_output, warmup, clipping, both. "
            "Several at once: batch+warmup; several in turn: the option again; none: no repair. By default what fits "
            "the model."
        ),
    ] = None,
    device: Device = "auto",
    data_dir: DataDir = None,
    budget: Annotated[float | None, typer.Option(help="Seconds: does what fits and says what was left out.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Variants measured at once, each in a process of one thread; 1: one after the other. By default as "
            "many as torch has threads.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for report and results; check/NAME if not given.")] = None,
) -> None:
    """Measure the learning rates that a network takes, say what limits them, and measure again with each repair."""
    from normscope.cli.target import load_target, refuse_misspelled

    refuse_misspelled(
        target, {"--data": data, "--loss": loss, "--optimizer": optimizer, "--scheduler": scheduler}
    )  # before torch is imported
    from normscope.checkup.answer import answer
    from normscope.checkup.as_json import check_json
    from normscope.checkup.check import check
    from normscope.checkup.headline import rates_were_tried
    from normscope.checkup.quick import quick_answer
    from normscope.checkup.repairs import repairs
    from normscope.checkup.report import report
    from normscope.cli.batches import RANDOM_WARNING, batches_of, loss_of, optimizer_of, range_of
    from normscope.descent.optimizers import own_lr
    from normscope.errors import Interrupted
    from normscope.model.build import eager
    from normscope.model.summary import num_outputs
    from normscope.rates.predicted import predict_lr
    from normscope.results import ensure_writable, save
    from normscope.runtime.device import usable_device

    place = usable_device(device)
    names = None if repair is None else [name for name in repair if name != "none"]
    repairs(names or (), steps=steps)  # a misspelled one is said before anything runs
    model = eager(load_target(target), device=place)
    batches = batches_of(data, batch_size, data_dir=data_dir, num_outputs=lambda x: num_outputs(model, x))
    name = target.rpartition(":")[2]
    if quick:
        refuse_given(context, NOT_QUICK, "--quick predicts 100 plain steps")
        made = optimizer_of(optimizer)
        predicted = predict_lr(
            model, batches, optimizer=made, lr=own_lr(made) if lr is None else lr, loss_fn=loss_of(loss)
        )
        print(quick_answer(predicted, model=name, data=data, width=text_width()))
        return
    folder = ensure_writable(out or Path("check") / name, keep=False)
    try:
        tree = check(
            model,
            batches,
            optimizer=optimizer_of(optimizer),
            repair=names,
            lr=lr,
            lr_range=range_of(lr_range),
            accumulate=accumulate,
            precision=precision,
            clip_norm=clip_norm,
            warmup=warmup,
            scheduler=None if scheduler is None else load_target(scheduler, "--scheduler"),
            steps=steps,
            seeds=seeds,
            loss_fn=loss_of(loss),
            train_steps=train_steps,
            cooldown=cooldown,
            budget_seconds=budget,
            workers=workers,
            model=name,
            data=data,
            notes=[RANDOM_WARNING] if data.startswith("random:") else [],
        )
    except KeyboardInterrupt as stop:
        raise Interrupted("interrupted before anything was measured: nothing is kept") from stop
    save(tree, folder / "check.nc")
    page = report(tree, folder / "report.html")
    if json:
        print(check_json(tree))
    else:
        print(answer(tree, width=text_width()))
        print(f"\nAll figures and numbers: {page}")
    if not rates_were_tried(tree):
        raise typer.Exit(2)
