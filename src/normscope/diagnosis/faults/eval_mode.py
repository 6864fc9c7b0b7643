"""A model that learns in training mode and not in evaluation mode: running statistics that lag behind their batches'.

Measured after the program's own run, on the same batches: the loss in training mode, in evaluation mode, and in
evaluation mode with the running statistics taken anew at the last weights. Those of a network whose weights still move
fast are off in any case: they are at fault where they still hold much of what they began with.
"""

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.statistics.numbers import number, percent

APART = 0.3
"""Of what there is to learn, what is lost between the modes."""

KEPT = 0.1
"""Share of the first running statistics that is still in the last ones."""

CODE = (
    "for module in model.modules():\n"
    "    if isinstance(module, nn.modules.batchnorm._BatchNorm):\n"
    "        module.reset_running_stats()\n"
    "        module.momentum = None  # a plain average: one pass over the data in train(), before eval()"
)


def _suspected(facts: Facts) -> Suspicion | None:
    modes = facts.run.modes if facts.run else None
    if modes is None or facts.run is None or not facts.run.score - facts.run.share(modes.eval_loss) > APART:
        return None
    losses = (
        f"After {facts.run.steps} steps the loss of the same batches is {number(modes.train_loss)} in training mode "
        f"and {number(modes.eval_loss)} in evaluation mode"
    )
    numbers = {"train_loss": modes.train_loss, "eval_loss": modes.eval_loss, "kept": modes.kept}
    cured = facts.run.share(modes.recalibrated_loss) > facts.run.score - APART
    if not cured or modes.kept < KEPT:
        return None
    return Suspicion(
        "running statistics lag behind",
        f"{losses}; with running statistics taken anew it is {number(modes.recalibrated_loss)}. Those of "
        f"{modes.module} still hold {percent(modes.kept)} of their first values.",
        {**numbers, "recalibrated_loss": modes.recalibrated_loss},
        True,
        place=modes.module,
    )


def _advice(_facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    return "Take a larger momentum of the running statistics, or a plain average.", CODE


FAULT = Fault("eval_mode", "architecture", 23, suspected=_suspected, advice=_advice, early=True)
