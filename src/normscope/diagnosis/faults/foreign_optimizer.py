"""An optimizer that holds other parameters than the model's: made before the model was rebuilt, copied or changed."""

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.foreign:
        return None
    return Suspicion(
        "the optimizer holds parameters that are not the model's",
        f"{facts.foreign} of its parameters are none of this model's: its steps do not move what the loss is taken of.",
        {"foreign": float(facts.foreign)},
        True,
        place="optimizer",
    )


def _advice(facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    line = f"optimizer = torch.optim.{facts.optimizer or 'SGD'}(model.parameters(), lr=...)"
    return "Make the optimizer of the model that is trained, after it was loaded, moved, wrapped or changed.", line


FAULT = Fault("foreign_optimizer", "optimizer", 3, suspected=_suspected, advice=_advice, early=True)
