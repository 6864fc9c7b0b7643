"""The loss counts the padding of sequences: it falls as that is learned, whatever becomes of the rest."""

from normscope.diagnosis.experiments import LEARNED
from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.diagnosis.loss_terms import Judged
from normscope.statistics.numbers import percent

MUCH, MOST = 0.2, 0.5
"""Share of the positions from which on padding is a fault where the rest is not learned, and in any case."""


def _suspected(facts: Facts) -> Suspicion | None:
    padding = facts.padding
    if padding is None or not padding.counted or facts.run is None:
        return None
    if padding.share < (MUCH if facts.score < LEARNED else MOST):
        return None
    learned = ""
    if isinstance(facts.program.loss_fn, Judged):
        learned = f" Of the rest {facts.run.steps} steps learn {percent(max(facts.score, 0.0))}."
    return Suspicion(
        "the loss counts padding",
        f"{percent(padding.share)} of the targets are padding ({padding.target:g}), and the loss has a gradient there: "
        f"it falls as padding is foretold.{learned}",
        {"padded_share": padding.share, "padding": padding.target},
        True,
        place="the loss",
    )


def _advice(facts: Facts, suspicion: Suspicion) -> tuple[str, str]:
    target = suspicion.numbers["padding"]
    if facts.kind == "number":
        code = f"seen = targets != {target:g}\nloss = ((outputs - targets).square() * seen).sum() / seen.sum()"
        return "Mask it.", code
    code = f"loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index={target:g})"
    return "Leave it out of the loss.", code


FAULT = Fault("padding", "loss", 13, suspected=_suspected, advice=_advice, early=True)
