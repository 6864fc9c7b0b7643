"""A schedule that brings the rate to nothing long before the training ends, as one made for epochs and stepped after
every batch."""

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.statistics.numbers import number

NOTHING, HALF = 1e-3, 0.5
"""A rate below this share of the largest moves nothing; so small it is for this share of the steps or more."""


def steps_that_move(schedule: tuple[float, ...]) -> int:
    """How many steps are taken until the rate stays below that share of its largest."""
    largest = max(schedule, default=0.0)
    moving = [step for step, rate in enumerate(schedule) if rate >= NOTHING * largest]
    return moving[-1] + 1 if moving and largest > 0 else 0


def _suspected(facts: Facts) -> Suspicion | None:
    steps, moving = len(facts.schedule), steps_that_move(facts.schedule)
    if not steps or moving > (1 - HALF) * steps:
        return None
    return Suspicion(
        "the schedule ends the training too early",
        f"From step {moving} of {steps} on the rate is below a thousandth of its largest, at the end "
        f"{number(facts.schedule[-1])} times that of the first step: those steps change nothing.",
        {"moving_steps": float(moving), "steps": float(steps), "last_rate": facts.schedule[-1]},
        True,
        place="scheduler",
    )


def _advice(_facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    return (
        "Step it once an epoch, or make it for the number of steps that there are.",
        "for epoch in range(epochs):\n    for batch in loader:\n        ...\n    scheduler.step()",
    )


FAULT = Fault("schedule", "learning_rate", 7, suspected=_suspected, advice=_advice, early=True)
