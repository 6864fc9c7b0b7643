"""A class that hardly counts in the loss, though it is not rare.

Where all logits are 0, making the examples of class c certain takes a share s_c off what making all certain takes off
the loss. The weight of a class that has share n_c of the examples is s_c / n_c, 1 on average.
"""

from collections.abc import Iterator

import torch

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.diagnosis.outputs import LARGE_LOGIT, loss_of_outputs
from normscope.model.batch import num_examples, targets_of
from normscope.statistics.numbers import number, percent

HARDLY = 0.05
"""The weight of a class that hardly counts ..."""

RARE = 0.5
"""... and is more than this share of an average class."""

MOST_CLASSES, BATCHES = 100, 10


def weights(facts: Facts) -> Iterator[tuple[int, float, float]]:
    """Every class that occurs, its weight and its share of the examples."""
    program, width = facts.program, facts.num_outputs
    model, counts, shares, total = program.build(0), torch.zeros(width), torch.zeros(width), 0.0
    for batch in program.batches[:BATCHES]:
        labels = targets_of(batch)
        if labels is None or labels.ndim != 1 or num_examples(batch) != len(labels):
            return
        if not bool(((labels >= 0) & (labels < width)).all()):
            return
        flat = torch.zeros(len(labels), width, device=labels.device)
        level = loss_of_outputs(model, batch, program.loss_fn, flat)
        for c in labels.unique().tolist():
            sure = flat.clone()
            sure[labels == c, c] = LARGE_LOGIT
            counts[c] += (labels == c).sum().cpu()
            shares[c] += len(labels) * (level - loss_of_outputs(model, batch, program.loss_fn, sure))
        total += len(labels)
    if not float(shares.sum()) > 0:
        return
    shares *= total / shares.sum()
    for c in counts.nonzero().flatten().tolist():
        yield c, float(shares[c] / counts[c]), float(counts[c]) / total


def _suspected(facts: Facts) -> Suspicion | None:
    if facts.kind != "labels" or facts.family or not 1 < facts.num_outputs <= MOST_CLASSES:
        return None
    found = list(weights(facts))
    slighted = [one for one in found if one[1] < HARDLY and one[2] > RARE / len(found)]
    if not slighted or not all(-HARDLY < weight < len(found) for _, weight, _ in found):
        return None
    c, weight, share = min(slighted, key=lambda one: one[1])
    return Suspicion(
        f"class {c} hardly counts in the loss",
        f"{percent(share)} of the examples are of class {c}, and each weighs {number(max(weight, 0.0))} times an "
        "average one: nothing makes the model tell it.",
        {"weight": weight, "share": share},
        True,
        place="the loss",
    )


def _advice(_facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    return (
        "Give classes the weights 1 / (their number of examples), or none.",
        "counts = torch.bincount(labels, minlength=classes)\n"
        "loss_fn = nn.CrossEntropyLoss(weight=counts.sum() / (classes * counts.clamp(min=1)))",
    )


FAULT = Fault("class_weights", "loss", 11, suspected=_suspected, advice=_advice, early=True)
