"""A batch that the model does not take: above all a last one of a single example, of which batch norm has no
statistics."""

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion


def _suspected(facts: Facts) -> Suspicion | None:
    first = facts.first
    if first is None or not first.refused:
        return None
    place, message = next(iter(first.refused.items()))
    count, size = len(first.losses), first.examples[place]
    numbers = {"batch": float(place), "examples": float(size), "refused": float(len(first.refused))}
    if size == 1 and max(first.examples) > 1:
        sentence = f"Batch {place} of {count} (from 0) has one example, and the model does not take it: {message}."
        return Suspicion("a batch of one example has no batch statistics", sentence, numbers, True, f"batch {place}")
    if len(first.refused) == count:
        return None  # nothing can be measured, and what was raised says why
    sentence = f"Batch {place} of {count} (from 0), of {size} examples, is refused: {message}."
    return Suspicion("the model does not take every batch", sentence, numbers, True, f"batch {place}")


def _advice(_facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    return "Leave the incomplete last batch out.", "DataLoader(data, batch_size=..., shuffle=True, drop_last=True)"


FAULT = Fault("last_batch", "batch_size", 2, suspected=_suspected, advice=_advice, early=True)
