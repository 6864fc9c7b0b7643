"""A squared or absolute error where the targets are classes: its gradient vanishes where a sigmoid or softmax is surely
wrong. A negative log-likelihood that is given probabilities in place of their logarithms. And any other loss of labels
under which the model does not learn what it learns under cross-entropy."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.diagnosis.facts import Facts, judged_anew
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.faults.overflow import overflow
from normscope.diagnosis.patches import output_through
from normscope.diagnosis.program import Program
from normscope.model.batch import Batch, targets_of

UNKNOWN = ("", "mse", "mae", "nll")
"""Families that are not made for labels: those of numbers, of log-probabilities without a softmax, and none known."""

WORDS = {"mse": "the squared error", "mae": "the absolute error"}


def _suspected(facts: Facts) -> Suspicion | None:
    if facts.family == "nll" and facts.last == "softmax":
        return Suspicion(
            "the loss takes log-probabilities and is given probabilities",
            "The model ends in softmax, and the loss is minus the output of the right class: linear in it, and as low "
            "as -1, not the likelihood.",
            {},
            certain=True,
        )
    if facts.evidence is not None and overflow(facts.evidence) is not None:
        return None  # numbers out of range come first
    if facts.kind == "labels" and facts.num_outputs > 1 and facts.family in UNKNOWN and facts.last != "log_softmax":
        of = WORDS.get(facts.family, "none of the usual ones")
        return Suspicion(
            "the loss does not fit labels",
            f"The targets are labels of {facts.num_outputs} classes, and the loss is {of}, not cross-entropy.",
            {"classes": float(facts.num_outputs)},
            certain=facts.family == "nll" and facts.last == "identity",  # without a lower end
            place="the loss",
        )
    if facts.family not in WORDS or facts.kind not in ("one_hot", "multi_hot", "binary"):
        return None
    return Suspicion(
        f"{WORDS[facts.family]} of classes",
        f"The targets are classes, and the loss is {WORDS[facts.family]}: where the model is surely wrong, its "
        "gradient vanishes.",
        {},
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    if not all(type(batch) in (tuple, list) and len(batch) == 2 for batch in program.batches):
        return
    last = facts.chain.layers[-1] if facts.chain else "the model"
    patches = program.patches
    if facts.chain is not None and facts.last != "identity":
        patches = (*patches, output_through(last, lambda z: z))
    if facts.kind in ("one_hot", "labels") and facts.num_outputs > 1:
        loss, code = of_classes, "loss = nn.functional.cross_entropy(logits, targets)"
    else:
        loss, code = of_bits, "loss = nn.functional.binary_cross_entropy_with_logits(logits, targets.float())"
    said = f"# logits: what {last} gives, with no activation behind it\n{code}"
    yield Repair(judged_anew(replace(program, loss_fn=loss, patches=patches)), said, "cross-entropy of the logits")


def of_classes(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of a pair's logits, whose last dimension is the classes'."""
    logits, targets = model(batch[0]), _targets(batch)
    if targets.is_floating_point():
        return F.cross_entropy(logits, targets)
    return F.cross_entropy(logits.flatten(0, -2), targets.long().flatten())


def of_bits(model: nn.Module, batch: Batch) -> Tensor:
    """Binary cross-entropy of a pair's logits."""
    logits = model(batch[0])
    return F.binary_cross_entropy_with_logits(logits, _targets(batch).to(logits.dtype).reshape(logits.shape))


def _targets(batch: Batch) -> Tensor:
    targets = targets_of(batch)
    return torch.empty(0) if targets is None else targets


FAULT = Fault("loss_of_classes", "loss", 40, suspected=_suspected, repairs=_repairs)
